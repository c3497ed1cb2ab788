"""GPUs without peer access, as two T4 on Kaggle; there are none here, so torch's refusal is a stand-in's."""

from typing import Any

import pytest
import torch

from tplab.collectives import symmetric


def test_gpus_that_do_not_reach_each_other_are_told_what_works(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.distributed._symmetric_memory as torchs

    def refuse(*_: Any) -> None:
        raise RuntimeError("CUDASymmetricMemory: peer access is not supported")

    monkeypatch.setattr(torchs, "empty", torch.empty)
    monkeypatch.setattr(torchs, "rendezvous", refuse)
    with pytest.raises(RuntimeError, match=r"peer access over PCIe.*ring.*library do without it") as caught:
        symmetric.empty(8, torch.float32, torch.device("cpu"), None)  # type: ignore[arg-type]
    assert "CUDASymmetricMemory" in str(caught.value.__cause__)
