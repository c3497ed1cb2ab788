"""Layouts run for real, beside what was predicted for them."""

from tplab.topology.verification.run import Verification, submit_verify, verify
from tplab.topology.verification.static_batch import machine_of, predict_batch

__all__ = [
    "Verification",
    "machine_of",
    "predict_batch",
    "submit_verify",
    "verify",
]
