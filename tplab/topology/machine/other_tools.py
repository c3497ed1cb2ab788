"""Tables of links that are not ``nvidia-smi topo -m``'s: whose they are, and how to go on."""

import re

_AMD = "take the preset of the machine (mi300x, mi325x, mi350x, mi355x)"
_OWN = "describe one of its GPUs in figures (--machine memory_GB=64,hbm_GBps=1600,bf16_TFLOPS=300 --gpus 8)"

_TOOLS: tuple[tuple[str, str, str], ...] = (
    # pattern, whose it is, the way out; the first that is found counts
    (r"\bhy-smi\b|\bHCU\d|\bDCU\d|\[DCU", "hy-smi (Hygon)", _OWN),
    (
        r"ROCm System Management Interface|AMD Topology|\b(ACCESS|WEIGHT|HOPS|LINK TYPE|NUMA BW) TABLE:"
        r"|\b(rocm|amd)-smi\b|(Weight|Hops|Link Type) between two GPUs|\bXGMI\b",
        "rocm-smi or amd-smi (AMD)",
        _AMD,
    ),
    (r"\bnpu-smi\b|\bascend-dmi\b|\bHCCS\b|\bNPU\d+\s+NPU\d+\b", "npu-smi (Ascend)", _OWN),
    (r"\bmx-smi\b|\bMetaX|\bMX\d*\s*=\s*Connection", "mx-smi (MetaX)", _OWN),
    (r"\bmthreads-gmi\b|\bMTHREADS\b|\bMTT S\d|\bMTLink\b", "mthreads-gmi (Moore Threads)", _OWN),
    (r"\bcnmon\b|\bMLU\d+\b|\bMLU-Link\b", "cnmon (Cambricon)", _OWN),
    (r"\bixsmi\b|\bIluvatar\b", "ixsmi (Iluvatar)", _OWN),
    (r"\bxpu-smi\b|\bGPU \d+/\d+\b|\bXL\d+\b|\bMDF\b", "xpu-smi (Intel)", _OWN),
    (r"\bhl-smi\b|\bHL-\d{3}\b", "hl-smi (Gaudi)", _OWN),
    (r"\b(efsmi|brsmi|xpu_smi|tt-smi|vsmi)\b", "another maker's tool", _OWN),
)
_ALIKE = {"hy-smi (Hygon)", "mx-smi (MetaX)", "mthreads-gmi (Moore Threads)", "ixsmi (Iluvatar)"}
"""Those with the words of NVIDIA's own legend."""
_NONE: tuple[tuple[str, str], ...] = (
    (r"<system version=|<gpu dev=", "this is NCCL's file of the topology"),
    (r"\bdcgmi\b|CPU Core Affinity", "this is what dcgmi topo prints"),
    (
        r"Invalid combination of input arguments|topo\w*\W.{0,80}\bnot supported"
        r"|not supported on (this platform|Windows)|\bWDDM\b"
        r"|(?m:^\s*PS [A-Z]:\\)|(?m:^\s*[A-Z]:\\[^\n]*>)|Microsoft Windows",
        "on Windows nvidia-smi prints no such table",
    ),
    (
        r"Failed to initialize NVML|communicate with the NVIDIA driver|No devices were found|command not found"
        r"|is not recognized as|Topology:\s*Could not collect",
        "nvidia-smi printed no table when this was made",
    ),
)
_FILE = re.compile(r"[^\s<>|*?\"]{1,300}\.(txt|log|out|md|csv|json)")
_WAY = "paste what `nvidia-smi topo -m` prints, or take the preset of the machine (--machine, --gpus)"


def other_tool(text: str, *, alike: bool = False) -> str | None:
    """What to say of a text with another tool's table, or with one that is written ``alike``; None where none is."""
    for pattern, tool, way in _TOOLS:
        if (not alike or tool in _ALIKE) and re.search(pattern, text):
            return f"this is not what `nvidia-smi topo -m` prints, but {tool}: its links are not read; {way}"
    return None


def no_table(text: str, named: str) -> str:
    """What to say of a text without any table; ``named``: the GPUs that it names, if it does."""
    found = next((f" ({said})" for pattern, said in _NONE if re.search(pattern, text)), "")
    if _FILE.fullmatch(text.strip()):
        found = " (it is the name of a file: give what is in it)"
    names = f"; it names {named}" if named else ""
    return f"no line of the text is the header of a topology table (GPU0 GPU1 ...){found}{names}: {_WAY}"
