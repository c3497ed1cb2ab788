"""The error that names a layer of packages."""

import pickle

from tplab.needs import MissingLayer


def test_a_missing_layer_is_the_same_error_after_it_travelled() -> None:
    error = MissingLayer("Cluster", "torch", "pynvml")
    again = pickle.loads(pickle.dumps(error))  # as from a rank
    assert (type(again), str(again), again.name) == (MissingLayer, str(error), "torch")
    assert str(error).startswith("Cluster needs torch, nvidia-ml-py, which are not installed here: ")
