"""The small model that comes with tplab, trained on Jane Austen's novels: a checkpoint like any other.

So that layouts can be seen to write the same sentence. It is of the Llama family, 8 layers of 128, 1.4 million
parameters in bfloat16, and knows 1,024 tokens; it takes 256 of them, prompt and new ones together. How it was made,
and of what: ``docs/trained-model.md``.

Pure: no torch.
"""

from pathlib import Path

_FOLDER = Path(__file__).parent / "austen"


def trained_model() -> Path:
    """Folder of the checkpoint: what ``generate`` takes, ``ModelConfig.from_hf`` and ``Tokenizer.of`` read."""
    return _FOLDER
