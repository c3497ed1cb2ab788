"""What a GPU's generation decides: which numbers it multiplies, which engines still run on it.

Sources: NVIDIA's architecture white papers and list of compute capabilities; AMD's CDNA 3 and CDNA 4 white papers.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """A maker's generation of GPUs."""

    maker: str
    """``nvidia`` or ``amd``."""
    year: int
    """Year of its first product: which of two is the newer."""
    capability: tuple[int, int] | None
    """Least CUDA compute capability of it; None for AMD."""
    matrix_units: bool = True
    """Whether it has tensor cores (AMD: matrix cores)."""
    bf16: bool = True
    """Whether it multiplies bf16. If not, engines run a model in fp16."""
    fp8: float | None = None
    int8: float | None = 2.0
    fp4: float | None = None
    """Rates of GEMMs in these over that of fp16 on professional cards; None: not multiplied natively."""
    fp32: float = 0.5
    """Rate of fp32 GEMMs over that of fp16: half where there is TF32, else that of plain fp32."""


GENERATIONS: Mapping[str, Generation] = {
    "pascal": Generation(maker="nvidia", year=2016, capability=(6, 0), matrix_units=False, bf16=False, int8=None),
    "volta": Generation(maker="nvidia", year=2017, capability=(7, 0), bf16=False, int8=None, fp32=0.125),
    "turing": Generation(maker="nvidia", year=2018, capability=(7, 5), bf16=False, fp32=0.125),
    "ampere": Generation(maker="nvidia", year=2020, capability=(8, 0)),
    "ada": Generation(maker="nvidia", year=2022, capability=(8, 9), fp8=2),
    "hopper": Generation(maker="nvidia", year=2022, capability=(9, 0), fp8=2),
    "blackwell": Generation(maker="nvidia", year=2024, capability=(10, 0), fp8=2, fp4=4),
    "cdna3": Generation(maker="amd", year=2023, capability=None, fp8=2),
    "cdna4": Generation(maker="amd", year=2025, capability=None, fp8=2, fp4=4, fp32=0.0625),
}
"""Name -> generation; NVIDIA's by compute capability."""


def generation_of(major: int, minor: int) -> str | None:
    """The newest generation whose compute capability is at most ``major.minor``; None before Pascal."""
    able = [name for name, each in GENERATIONS.items() if each.capability and each.capability <= (major, minor)]
    return able[-1] if able else None
