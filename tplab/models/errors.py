"""What can go wrong with a model, as the caller sees it.

No torch: the notebook kernel rebuilds a rank's exception from here.
"""


class CheckpointError(ValueError):
    """A checkpoint that is not this model's, or cannot be read or written. Names the tensor or the file."""
