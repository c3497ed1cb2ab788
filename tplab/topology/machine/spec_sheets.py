"""Spec sheets of GPUs.

Figures are the makers' dense rates (without sparsity) and bandwidths in one direction. Sources: NVIDIA's data sheets,
architecture white papers and product briefs of each card (GeForce: the white papers GA102, Ada and RTX Blackwell,
rates with fp32 sums, which are half of the professional cards'); A10G and L20 as their clouds state them; AMD's data
sheets of MI300X, MI325X, MI350X and MI355X. Those of A100, A30, H100, H200, B200, B300, GB200, GB300, L4, L40S and
RTX PRO 6000 Server Edition checked against the system files of NVIDIA AIConfigurator
(github.com/ai-dynamo/aiconfigurator, commit 095f58a, Apache-2.0), whose memory bandwidths are used for B200 and B300
(7700 and 7750 GB/s; spec sheets: 8000). B300's fp4 is that of NVIDIA's HGX B300 page, 108 PFLOP/s for eight. B300 and
GB300 hardly have int8 units left (0.25 POP/s with sparsity): such weights are widened.

Memory is what the driver shows (nvidia-smi, rocm-smi), which is less than the name says, and of it what CUDA shows
(``cuda_GB``); of GB10, what CUDA is given of the 128 GB.

What large bf16 GEMMs keep up of the peak (``kept_share``) is over the 80.3 % of H100 and H200, from one table of such
measurements (github.com/stas00/ml-engineering, compute/accelerator/README.md, maximum achievable matmul FLOPS): B200
77.6 %, B300 78.6, GB200 72.9 (GB300 as it), MI300X 51.4, MI325X 60.4, MI355X 1565 TFLOP/s (MI350X the same share). T4:
24 of 65 TFLOP/s, all that its 70 W leave it (forums.developer.nvidia.com, 264462); L20, with power to spare: 110 of
119.5 (github.com/xlite-dev/LeetCUDA, kernels/hgemm). The other cards of 60 to 75 W (A2, L2, L4) will keep up less than
their peak says too, and are not in it for want of a measurement.
"""

from collections.abc import Mapping
from typing import Any

from tplab.topology.machine.machine import Gpu

_MIB = 1048576 / 1e9  # GB per MiB


def cuda_GB(driver_GB: float) -> float:
    """Memory that CUDA shows, where the driver (NVML, ``nvidia-smi``) shows ``driver_GB``: it keeps page tables and
    room for ECC and its own firmware. Seen in logs of engines, in GiB: T4 14.6 of 15, A10G 22.1 of 22.5, RTX 3090 and
    4090 23.5-23.7 of 24, A100 39.4-39.6 of 40 and 79.2 of 80, L40S 44.4 of 45, RTX 6000 Ada 47.4 of 48, H100 79.1-79.2
    of 79.6, H200 139.8 of 140.4."""
    return driver_GB - 0.36 * 2**30 / 1e9 - 0.002 * driver_GB


def _gpu(name: str, mib: int, hbm: float, bf16: float, **more: Any) -> Gpu:
    shown = mib * _MIB if more.get("shared_memory") or "xgmi_GBps" in more else cuda_GB(mib * _MIB)
    return Gpu(name=name, memory_GB=round(shown, 2), hbm_GBps=hbm, bf16_TFLOPS=bf16, **more)


def _rates(fp8: float | None = None, int8: float | None = None, fp4: float | None = None) -> dict[str, Any]:
    return {"fp8_TFLOPS": fp8, "int8_TOPS": fp8 if int8 is None else int8, "fp4_TFLOPS": fp4}


_PASCAL: dict[str, Any] = {"generation": "pascal", "pcie_GBps": 15.8, "num_sms": 56}
_VOLTA: dict[str, Any] = {"generation": "volta", "pcie_GBps": 15.8, "num_sms": 80}
_VOLTA_SXM: dict[str, Any] = _VOLTA | {"nvlink_GBps": 25.0, "num_nvlinks": 6}
_TURING: dict[str, Any] = {"generation": "turing", "pcie_GBps": 15.8}
_TU102: dict[str, Any] = _TURING | {"nvlink_GBps": 25.0, "num_nvlinks": 2, "num_sms": 72}
_AMPERE: dict[str, Any] = {"generation": "ampere"}
_GA100: dict[str, Any] = _AMPERE | {"nvlink_GBps": 25.0, "num_nvlinks": 12, "num_sms": 108, "int8_TOPS": 624.0}
_GA102: dict[str, Any] = _AMPERE | {"nvlink_GBps": 14.0625, "num_nvlinks": 4, "num_sms": 84}
_ADA: dict[str, Any] = {"generation": "ada"}
_PCIE5: dict[str, Any] = {"generation": "hopper", "pcie_GBps": 63.0, "nvlink_GBps": 25.0, "num_sms": 132}
_HOPPER: dict[str, Any] = _PCIE5 | {"num_nvlinks": 18}
_BRIDGED: dict[str, Any] = _PCIE5 | {"num_nvlinks": 12}  # three bridges to one other card
_EXPORT: dict[str, Any] = {"num_nvlinks": 8}  # 400 GB/s, both directions together
_GDDR7: dict[str, Any] = {"generation": "blackwell", "pcie_GBps": 63.0}
_BLACKWELL: dict[str, Any] = _GDDR7 | {"nvlink_GBps": 50.0, "num_nvlinks": 18, "num_sms": 148}
_MI300: dict[str, Any] = {"generation": "cdna3", "pcie_GBps": 63.0, "xgmi_GBps": 64.0, "num_sms": 304}
_MI350: dict[str, Any] = {"generation": "cdna4", "pcie_GBps": 63.0, "xgmi_GBps": 76.8, "num_sms": 256}
_GEFORCE: dict[str, Any] = {"pcie_p2p": False}
_GEN5_X8: dict[str, Any] = {"pcie_GBps": 31.5}
_H100 = _rates(1979)
_MI300_RATES = _rates(2614.9)

GPUS: Mapping[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        _gpu("p100", 16280, 732, 21.2, **_PASCAL | {"nvlink_GBps": 20.0, "num_nvlinks": 4}),
        _gpu("p100-pcie", 16280, 732, 18.7, **_PASCAL),
        _gpu("p40", 22919, 347, 11.8, int8_TOPS=47, **_PASCAL | {"num_sms": 30}),  # fp16 at 1/64: engines take fp32
        _gpu("v100-16gb", 16160, 900, 125, **_VOLTA_SXM),
        _gpu("v100-32gb", 32510, 900, 125, **_VOLTA_SXM),
        _gpu("v100-pcie-16gb", 16160, 900, 112, **_VOLTA),
        _gpu("v100-pcie-32gb", 32510, 900, 112, **_VOLTA),
        _gpu("v100s", 32510, 1134, 130, **_VOLTA),
        _gpu("t4", 15360, 320, 65, int8_TOPS=130, kept_share=0.46, num_sms=40, **_TURING),
        _gpu("rtx-2080-ti", 11264, 616, 53.8, int8_TOPS=215.2, **_TU102 | _GEFORCE | {"num_sms": 68}),
        _gpu("titan-rtx", 24576, 672, 130.5, int8_TOPS=261, **_TU102),
        _gpu("quadro-rtx-6000", 24576, 672, 130.5, int8_TOPS=261, **_TU102),
        _gpu("quadro-rtx-8000", 49152, 672, 130.5, int8_TOPS=261, **_TU102),
        _gpu("a100-40gb", 40960, 1555, 312, **_GA100),
        _gpu("a100", 81920, 2039, 312, **_GA100),
        _gpu("a100-pcie-40gb", 40960, 1555, 312, **_GA100),
        _gpu("a100-pcie", 81920, 1935, 312, **_GA100),
        _gpu("a800-pcie-40gb", 40960, 1555, 312, **_GA100 | _EXPORT),
        _gpu("a800", 81920, 2039, 312, **_GA100 | _EXPORT),
        _gpu("a800-pcie", 81920, 1935, 312, **_GA100 | _EXPORT),
        _gpu("a30", 24576, 933, 165, int8_TOPS=330, nvlink_GBps=25, num_nvlinks=4, num_sms=56, **_AMPERE),
        _gpu("a2", 15356, 200, 18, int8_TOPS=36, pcie_GBps=15.8, num_sms=10, **_AMPERE),
        _gpu("a10", 23028, 600, 125, int8_TOPS=250, num_sms=72, **_AMPERE),
        _gpu("a10g", 23028, 600, 70, int8_TOPS=140, num_sms=80, **_AMPERE),
        _gpu("a40", 46068, 696, 149.7, int8_TOPS=299.3, **_GA102),
        _gpu("rtx-a4000", 16376, 448, 76.7, int8_TOPS=153.4, num_sms=48, **_AMPERE),
        _gpu("rtx-a5000", 24564, 768, 111.1, int8_TOPS=222.2, **_GA102 | {"num_sms": 64}),
        _gpu("rtx-a6000", 49140, 768, 154.8, int8_TOPS=309.7, **_GA102),
        _gpu("rtx-3060", 12288, 360, 25.5, int8_TOPS=101.9, num_sms=28, **_AMPERE | _GEFORCE),
        _gpu("rtx-3080", 10240, 760, 59.5, int8_TOPS=238, num_sms=68, **_AMPERE | _GEFORCE),
        _gpu("rtx-3080-ti", 12288, 912, 68.2, int8_TOPS=272.8, num_sms=80, **_AMPERE | _GEFORCE),
        _gpu("rtx-3090", 24576, 936, 71, int8_TOPS=284, **_GA102 | _GEFORCE | {"num_sms": 82}),
        _gpu("rtx-3090-ti", 24564, 1008, 80, int8_TOPS=320, **_GA102 | _GEFORCE),
        _gpu("l2", 23034, 300, 96.5, **_rates(193), **_ADA),
        _gpu("l4", 23034, 300, 121, num_sms=58, **_rates(242), **_ADA),
        _gpu("l20", 46068, 864, 119.5, kept_share=1.15, num_sms=92, **_rates(239), **_ADA),
        _gpu("l40", 46068, 864, 181, num_sms=142, **_rates(362), **_ADA),
        _gpu("l40s", 46068, 864, 362, num_sms=142, **_rates(733), **_ADA),
        _gpu("rtx-4500-ada", 24570, 432, 158.5, num_sms=60, **_rates(317), **_ADA),
        _gpu("rtx-5000-ada", 32760, 576, 261.1, num_sms=100, **_rates(522.2), **_ADA),
        _gpu("rtx-6000-ada", 49140, 960, 364.2, num_sms=142, **_rates(728.5), **_ADA),
        _gpu("rtx-4060-ti", 16380, 288, 44.1, pcie_GBps=15.8, num_sms=34, **_rates(88.2, 176.5), **_ADA | _GEFORCE),
        _gpu("rtx-4070", 12282, 504, 58.3, num_sms=46, **_rates(116.6, 233.2), **_ADA | _GEFORCE),
        _gpu("rtx-4070-ti", 12282, 504, 80.2, num_sms=60, **_rates(160.4, 320.7), **_ADA | _GEFORCE),
        _gpu("rtx-4070-ti-super", 16376, 672, 88.2, num_sms=66, **_rates(176.4, 352.8), **_ADA | _GEFORCE),
        _gpu("rtx-4080", 16376, 717, 97.5, num_sms=76, **_rates(194.9, 389.9), **_ADA | _GEFORCE),
        _gpu("rtx-4080-super", 16376, 736, 104.4, num_sms=80, **_rates(208.9, 417.8), **_ADA | _GEFORCE),
        _gpu("rtx-4090-d", 24564, 1008, 147.1, num_sms=114, **_rates(294.2, 588.4), **_ADA | _GEFORCE),
        _gpu("rtx-4090", 24564, 1008, 165.2, num_sms=128, **_rates(330.3, 660.6), **_ADA | _GEFORCE),
        _gpu("h100", 81559, 3352, 989, **_H100, **_HOPPER),
        _gpu("h100-pcie", 81559, 2039, 756, **_rates(1513), **_BRIDGED | {"num_sms": 114}),
        _gpu("h100-nvl", 95830, 3938, 835, **_rates(1671), **_BRIDGED),
        _gpu("h800", 81559, 3352, 989, **_H100, **_HOPPER | _EXPORT),
        _gpu("h800-pcie", 81559, 2039, 756, **_rates(1513), **_BRIDGED | _EXPORT | {"num_sms": 114}),
        _gpu("h20", 97871, 4000, 148, **_rates(296), **_HOPPER | {"num_sms": 78}),
        _gpu("h20-3e", 143771, 4800, 148, **_rates(296), **_HOPPER | {"num_sms": 78}),
        _gpu("h200", 143771, 4800, 989, **_H100, **_HOPPER),
        _gpu("h200-nvl", 143771, 4800, 835, **_rates(1671), **_HOPPER),
        _gpu("gh200", 97871, 4000, 989, **_H100, **_HOPPER),
        _gpu("gh200-144gb", 146831, 4900, 989, **_H100, **_HOPPER),
        _gpu("b200", 183359, 7700, 2250, kept_share=0.97, **_rates(4500, fp4=9000), **_BLACKWELL),
        _gpu("b300", 275040, 7750, 2250, kept_share=0.98, fp8_TFLOPS=4500, fp4_TFLOPS=13500, **_BLACKWELL),
        _gpu("gb200", 189471, 8000, 2500, kept_share=0.91, **_rates(5000, fp4=10000), **_BLACKWELL),
        _gpu("gb300", 284208, 8000, 2500, kept_share=0.91, fp8_TFLOPS=5000, fp4_TFLOPS=15000, **_BLACKWELL),
        _gpu("gb10", 122573, 273, 125, shared_memory=True, num_sms=48, **_rates(250, fp4=500), **_GDDR7),
        _gpu("rtx-pro-5000", 48935, 1344, 258, num_sms=110, **_rates(516, fp4=1032), **_GDDR7),
        _gpu("rtx-pro-6000", 97887, 1792, 468, num_sms=188, **_rates(936, fp4=1871), **_GDDR7),
        _gpu("rtx-pro-6000-max-q", 97887, 1792, 438.9, num_sms=188, **_rates(877.8, fp4=1755.5), **_GDDR7),
        _gpu("rtx-pro-6000-workstation", 97887, 1792, 503.8, num_sms=188, **_rates(1007.6, fp4=2015), **_GDDR7),
        _gpu("rtx-5060-ti", 16311, 448, 47.4, num_sms=36, **_rates(94.8, 189.6, 379), **_GDDR7 | _GEFORCE | _GEN5_X8),
        _gpu("rtx-5070", 12227, 672, 61.7, num_sms=48, **_rates(123.5, 246.9, 494), **_GDDR7 | _GEFORCE),
        _gpu("rtx-5070-ti", 16303, 896, 87.9, num_sms=70, **_rates(175.8, 351.5, 703), **_GDDR7 | _GEFORCE),
        _gpu("rtx-5080", 16303, 960, 112.6, num_sms=84, **_rates(225.1, 450.2, 900.4), **_GDDR7 | _GEFORCE),
        _gpu("rtx-5090", 32607, 1792, 209.5, num_sms=170, **_rates(419, 838, 1676), **_GDDR7 | _GEFORCE),
        _gpu("mi300x", 196592, 5300, 1307.4, kept_share=0.64, **_MI300_RATES, **_MI300),
        _gpu("mi325x", 262128, 6000, 1307.4, kept_share=0.75, **_MI300_RATES, **_MI300),
        _gpu("mi350x", 294896, 8000, 2306.9, kept_share=0.77, **_rates(4613.7, fp4=9227), **_MI350),
        _gpu("mi355x", 294896, 8000, 2516.6, kept_share=0.77, **_rates(5033, fp4=10066), **_MI350),
    )
}
"""Name -> GPU."""
OFFERED = ("a100-40gb", "l40s", "a100", "h100", "rtx-pro-6000", "h200", "b200", "b300", "mi300x", "mi325x", "mi355x")
"""What clouds rent and servers are sold with, eight to a node: named where another machine is too small."""

GPU_ALIASES: Mapping[str, str] = {
    "v100": "v100-32gb", "v100-sxm2": "v100-32gb", "v100-pcie": "v100-pcie-32gb", "p100-sxm2": "p100",
    "p100-pcie-16gb": "p100-pcie", "2080-ti": "rtx-2080-ti", "rtx-8000": "quadro-rtx-8000",
    "a100-80gb": "a100", "a100-sxm": "a100", "a100-sxm4": "a100", "a100-sxm4-80gb": "a100",
    "a100-sxm4-40gb": "a100-40gb", "a100-80gb-pcie": "a100-pcie", "a100-pcie-80gb": "a100-pcie",
    "a100-40gb-pcie": "a100-pcie-40gb", "a800-80gb": "a800", "a800-sxm": "a800", "a800-sxm4-80gb": "a800",
    "a800-80gb-pcie": "a800-pcie", "a800-40gb": "a800-pcie-40gb", "a800-40gb-active": "a800-pcie-40gb",
    "h100-sxm": "h100", "h100-sxm5": "h100", "h100-80gb": "h100", "h100-80gb-hbm3": "h100", "h800-sxm": "h800",
    "h800-sxm5": "h800", "h800-80gb": "h800", "h20-96gb": "h20", "h20-141gb": "h20-3e", "h200-sxm": "h200",
    "h200-141gb": "h200", "gh200-96gb": "gh200", "gh200-480gb": "gh200", "gh200-120gb": "gh200",
    "gh200-144g-hbm3e": "gh200-144gb", "b200-sxm": "b200", "b300-sxm": "b300", "b300-sxm6-ac": "b300",
    "a6000": "rtx-a6000", "a5000": "rtx-a5000", "a4000": "rtx-a4000", "3060": "rtx-3060", "3080": "rtx-3080",
    "3090": "rtx-3090", "rtx-3060-12gb": "rtx-3060", "4060-ti": "rtx-4060-ti", "rtx-4060-ti-16gb": "rtx-4060-ti",
    "4070": "rtx-4070", "4070-ti": "rtx-4070-ti", "4080": "rtx-4080", "4090": "rtx-4090", "4090d": "rtx-4090-d",
    "rtx-4090d": "rtx-4090-d", "rtx-5060-ti-16gb": "rtx-5060-ti", "5070-ti": "rtx-5070-ti", "5080": "rtx-5080",
    "5090": "rtx-5090", "rtx-pro-6000-server": "rtx-pro-6000", "rtx-pro-6000-blackwell": "rtx-pro-6000",
    "dgx-spark": "gb10",
}  # fmt: skip
"""Other names that people write."""
