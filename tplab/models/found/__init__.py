"""Where a model is that somebody names, and what is read of it: its configuration, and how many bytes its weights are.

  headers    the beginning of a safetensors file: types and bytes of its tensors; never the tensors
  folder     a checkpoint's folder, or one file of it
  hub        a repository on Hugging Face: of the local cache, or of the network
  named      the one question: what does this name mean?

Pure: no torch, and nothing but the standard library. Not ``huggingface_hub``: importing it takes longer than the whole
answer may, and a plain install does without it; nor ``safetensors``, whose reader maps the file and knows no headers
that came over a network.
"""
