"""The numbers of the latency model: physical names, one place, a source each.

Three kinds. The *spec sheet* is in ``presets``. *Kernel* constants come from tables of single kernels and collectives;
*engine* constants, the few that no kernel table can give, from tables of served models. None belongs to a model: what
differs between Llama and Qwen is in ``ModelSpec``. ``published.fit`` computes them from a folder of published
tables, which are not copied here; a ``Calibration`` of the user's own machine goes
before all of them.

Sources, by the letter in the comments:
  [K] GPU kernels of AIConfigurator (github.com/ai-dynamo/aiconfigurator, commit 095f58a, Apache-2.0): matmul and
      attention on H200, all-reduce on A100, H100, L40S, RTX PRO 6000, by vLLM, SGLang, TensorRT-LLM and nccl-tests
  [S] its served models, TP 1-8: Llama-3.1-70B in fp8 on H100 and H200 (vLLM, TensorRT-LLM), Qwen3-32B on H100 in fp8
      (TensorRT-LLM) and bf16 (vLLM, SGLang)
  [T] TokenWeave (github.com/microsoft/tokenweave, commit f483d1c, MIT): prefill of 70B in bf16, all-reduces deleted
  [F] FasterTransformer (github.com/NVIDIA/FasterTransformer, commit df4a753, Apache-2.0): GPT-20B on A100, TP 1-8
  [P] AIConfigurator, pull request 1459: Qwen3-32B on 8 H20, TP4 PP2 and TP2 PP4 against TP8, TensorRT-LLM
  [V] Vidur and apex_plus (github.com/microsoft): send and receive on A100 and H100, between nodes too
  [M] MSCCL++ (github.com/microsoft/mscclpp, commit 1f5f065) and NCCL issue 1244: all-reduce over two nodes
  [G] the lab's own engine on one H100 and two H200, kernel by kernel (profile.csv of tplab.lab's recordings), and on
      two other H200: 8B in seven batches, Qwen2.5-14B's shape in eight; in CUDA graphs, 4.6 % off over 23 of them
  [L] the lab's own verification: 0.065 over 18 layouts on four H200 (recorded in tplab.lab), 0.07 over 6 on two CPU
      cores (tests/benchmarks/bench_advisor.py), 0.18 over 12 with emulated compute on a busier machine
  [R] AMD, "Understanding RCCL Bandwidth and xGMI Performance on MI300X" (rocm.blogs.amd.com, March 2025): 48 of 64 GB/s
      of a link, 310 of 448 GB/s of the seven in an all-reduce of eight
  [A] an assumption; no table

Letters: n ranks of a group, M bytes, B bandwidth of a link in one direction as specified.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tplab.models.precision import ITEMSIZE
from tplab.topology.advisor.interval import Checked, Spread
from tplab.topology.advisor.validated import CHECKED, SPREAD
from tplab.topology.advisor.workload import MOST
from tplab.topology.machine.machine import Gpu


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkConstants:
    """How a family of links carries NCCL's all-reduce and a single send, as shares of the spec sheet."""

    latency_us: float = 0.0
    """Latency of the links that the fixed times were fitted on, in us: what another link's differs by comes on top, at
    every step in which all ranks wait for a message."""
    declared: bool = False
    """Whether nothing is fitted: an all-reduce is a ring with the link's own latency and bandwidth."""
    base_us: float = 0.0
    """Fixed time of a small all-reduce (LL protocol), in us."""
    step_us: float = 0.0
    """Time that each further rank adds to a small all-reduce, in us."""
    small_share: float = 1.0
    """Share of B that the LL protocol reaches."""
    bulk_base_us: float = 0.0
    """Fixed time of a large all-reduce (Simple protocol), in us."""
    bulk_step_us: float = 0.0
    """Time that each further rank adds to a large all-reduce, in us."""
    pair_share: float = 1.0
    """Share of B in a large ring of two."""
    ring_share: float = 1.0
    """Share of B in a large ring of more, whose members may share what lies between them."""
    bridged_share: float = 1.0
    """Share of B in a large ring between pairs that NVLink joins: each rank then either sends or receives over such a
    link."""
    send_us: float = 0.0
    """Time of point-to-point software on top of the link's own latency, in us."""
    send_share: float = 1.0
    """Share of B that a large send reaches."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CustomAllReduce:
    """An engine's own all-reduce inside a CUDA graph, where every pair of the group is joined directly."""

    one_shot_us: float
    one_shot_step_us: float
    """Time that each further rank adds, in us."""
    one_shot_share: float
    """Share of B; every rank sends M to the n-1 others."""
    two_shot_us: float
    two_shot_step_us: float
    """Time that each further rank adds, in us."""
    two_shot_share: float
    """Share of B; every rank sends 2(n-1)/n·M."""
    pcie_us: float | None = None
    """Fixed time of one-shot between two GPUs that PCIe joins, in us; None where NCCL sums there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConstants:
    """What one serving engine adds to the kernels."""

    step_us: float
    """Host work and sampling that the GPU waits for in each step, in us."""
    sequence_us: float
    """Host work that each running sequence adds to that, in us."""
    overlaps: bool
    """Whether ``sequence_us`` runs beside the GPU, and is seen only where it is longer; if not, it is added."""
    light_kernels: float
    """Kernels per block besides matmuls and attention: two norms with their sums, rotation, cache write, activation."""
    fp8_kernels: float
    """Kernels per block that turn activations into fp8, where they are not fused with their neighbours."""
    mfu: Mapping[str, float]
    """Share of the peak that large matmuls of a served model reach, by weight precision."""
    qk_norm_kernels: float
    """Kernels per block for the norms of queries and keys, in models that have them."""
    small_batch_slowdown: float
    """Factor on the time to stream 8-bit weights from some 32 tokens on: the engine's tiles for more than 16 tokens
    read them slower."""
    all_reduce: CustomAllReduce | None
    """The engine's own all-reduce kernels; None if it uses NCCL for every size."""
    python: bool
    """Whether kernels without a CUDA graph are launched through Python."""
    handoff_us: float
    """Host work to hand a micro-batch to the next stage, or its tokens back to the first, in us."""
    hop_tensors: int
    """Hidden states sent to the next stage: two where the residual travels apart."""
    pp_gather: float
    """Requests per stage that gather in one micro-batch before others fill; 0 where the engine splits a batch evenly.
    See ``steps.Steps.in_flight``."""
    prefill_policy: str
    """How the engine brings in prompts by default: one of ``workload.PREFILL_POLICIES`` but ``auto``."""
    max_num_tokens: int
    """Most tokens in a step where prompts are not cut."""
    reserves: bool
    """Whether a request starts only where its last token will fit too; if not, it starts where its prompt fits."""
    max_num_seqs: int
    """Most requests that a replica runs at once by default (``EnginePolicy.max_num_seqs`` goes before it)."""
    max_num_seqs_large: int | None = None
    """The same on GPUs of at least 70 GiB other than A100; None: no different."""
    batch_per_stage: bool = False
    """Whether the engine counts its largest batch by micro-batch, of which there are as many as stages; if not, by
    replica."""
    version: str
    """Versions of the engine that policy, largest batch and constants are of, for notes."""
    slowdown: tuple[tuple[float, float], ...] = ()
    """The same of 16-bit weights: numbers of tokens and factors, linear in between; empty: none."""
    samples_in_turn: bool = False
    """The last stage waits for a micro-batch's tokens before it starts the next one: its host work is part of its
    stage. If not, that runs beside the GPU."""
    kernels: Mapping[str, Any] | None = None
    """Fields of ``Constants`` that the engine's own kernels have other values of; None: none."""

    def largest_batch(self, gpu: Gpu) -> int:
        """Most requests that a replica on such GPUs runs at once by default."""
        large = gpu.memory_bytes >= 70 * 2**30 and "a100" not in gpu.name.lower()
        return self.max_num_seqs_large if large and self.max_num_seqs_large else self.max_num_seqs


_OF_THE_LAB = tuple(
    Checked(
        model=model, params=params, gpu=gpu, engine="lab", precision="bf16", tps=tps, pps=tps, loads=(1, 32),
        inputs=(128, 2048), outputs=(16, 32), num_cells=cells, error_pct=error, how="in sample, with CUDA graphs",
    )
    for model, params, gpu, tps, cells, error in (
        ("llama-3.1-8b", 6.98e9, "h100", (1,), 2, 5.3),
        ("llama-3.1-8b", 6.98e9, "h200", (1, 2), 13, 3.3),
        ("qwen2.5-14b", 1.32e10, "h200", (1, 2), 8, 6.5),
    )
)  # [G]  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Constants:
    """All of them."""

    hbm_share: float
    """Share of the memory bandwidth that streaming weights reaches."""
    kv_share: float
    """Share of the memory bandwidth that reading the cache reaches."""
    matmul_fixed_us: float
    """Fixed overhead of a GEMM inside a CUDA graph, in us: filling and draining the GPU."""
    attention_fixed_us: float
    """Fixed overhead of attention of one token per sequence, with the joining of its parts, in us."""
    light_kernel_us: float
    """Time of a norm, rotation, activation or conversion of a few tokens inside a CUDA graph, in us."""
    narrow_edges: tuple[float, float, float]
    """m0, n0, k0: what 8-bit GEMMs lose at their edges, in tokens, output features and input features."""
    sharpness: float
    """q of ``(memory^q + compute^q)^(1/q)``: a matmul that is bound by both loses against the larger."""
    attention_share: float
    """Share of the bf16 peak that causal attention over a long prompt reaches."""
    launch_us: float
    """Host time per kernel launched from C++ without a CUDA graph, in us."""
    python_launch_us: float
    """Host time per kernel launched from Python, through its dispatcher, in us."""
    first_wave: float
    """Part of the requests that arrive all at once: benchmarks send about ten times as many as run at a time."""
    together: float
    """Prompts that come in one step in a closed loop: requests that end in the same step are replaced in the same
    step."""
    links: Mapping[str, LinkConstants]
    """Family of links, see ``FAMILIES`` -> constants."""
    network_step_us: float
    """Time that each doubling of the nodes adds to an all-reduce, there and back, in us."""
    generation_scale: Mapping[str, float]
    """Generation of GPUs -> how many times as long fixed times are as on Hopper, whose tables they come from."""
    engines: Mapping[str, EngineConstants]
    """Name of an engine -> constants; ``generic``, from kernel tables and assumptions alone, where no table covers
    it."""
    spread: Spread = SPREAD
    """How far such predictions have been from measurements, by cause."""
    checked: tuple[Checked, ...] = (*CHECKED, *_OF_THE_LAB)
    """What they were checked on."""


FAMILIES = ("nvlink", "xgmi", "pcie", "sys", "network", "host", "emulated")
"""Links that behave alike: NVLink with or without switches, AMD's Infinity Fabric, PCIe inside a socket, PCIe across
sockets, another node, gloo on one host, a declared link."""

FAMILY_OF = {
    "nvswitch": "nvlink",
    "nvlink": "nvlink",
    "xgmi": "xgmi",
    "pix": "pcie",
    "pxb": "pcie",
    "phb": "pcie",
    "node": "pcie",
    "sys": "sys",
    "network": "network",
    "host": "host",
    "emulated": "emulated",
}
"""``Link.kind`` -> family."""

_VLLM_AR = CustomAllReduce(
    one_shot_us=4.25, one_shot_step_us=0.08, one_shot_share=0.59, two_shot_us=8.85, two_shot_step_us=0.0,
    two_shot_share=0.69, pcie_us=4.7,
)  # [K] H100, graph, 2-8 GPUs, up to 8 MiB: 3.4 % off on average; PCIe: RTX PRO 6000 4.2, L40S 5.3  # fmt: skip
_SGLANG_AR = CustomAllReduce(
    one_shot_us=2.36, one_shot_step_us=0.15, one_shot_share=0.67, two_shot_us=3.67, two_shot_step_us=0.58,
    two_shot_share=0.66, pcie_us=4.9,
)  # [K] the same: 5.6 %  # fmt: skip
_TRTLLM_AR = CustomAllReduce(
    one_shot_us=2.7, one_shot_step_us=0.08, one_shot_share=0.64, two_shot_us=7.85, two_shot_step_us=1.62,
    two_shot_share=0.53,
)  # [K] the same: 3.6 %  # fmt: skip
_LAB_AR = CustomAllReduce(
    one_shot_us=3.3, one_shot_step_us=0.1, one_shot_share=0.3, two_shot_us=6.5, two_shot_step_us=0.6,
    two_shot_share=0.7,
)  # [G] two H200; by the ranks as SGLang's  # fmt: skip


def mfu_table(mfu: float) -> dict[str, float]:
    """Weight precision -> share of the peak: one for all that the GPU multiplies as they are, since single matmuls [K]
    reach the same share in 8 and in 16 bits; int4 below it for the widening of weights on the way in [A]."""
    return {**dict.fromkeys(ITEMSIZE, mfu), "int4": 0.8 * mfu}


_MFU = 0.651  # [S]

DEFAULT = Constants(
    hbm_share=0.883,  # [S]; a copy on one H200 reached 0.88, single matmuls [K] 0.84
    kv_share=0.83,  # [K] H200, FlashAttention 3: 9 % off on average
    matmul_fixed_us=4.2,  # [K] H200, bf16, in a graph: 6 % off on average
    attention_fixed_us=12.0,  # [K] H200: 12.8 alone
    light_kernel_us=2.0,  # [A] an empty kernel in a graph takes 1-1.5; [S] allows up to 2
    narrow_edges=(33.0, 1575.0, 190.0),  # [K] H200, fp8 by TensorRT-LLM: 4 % off on average
    sharpness=3.2,  # [K] 3.1-3.6 in bf16
    attention_share=0.56,  # [K] H200, 2048 tokens and more
    launch_us=5.0,  # [F] 110 us per block of about 20 launches
    python_launch_us=15.0,  # [A] PyTorch's dispatcher
    first_wave=0.1,  # [A] the usual prompts-per-concurrency of published benchmarks; see [S]'s first-token times
    together=2.0,  # [S] first-token times at low load: 1 where lengths are spread, 3 where all are the same
    links={
        "nvlink": LinkConstants(  # [K] H100, nccl-tests: 7 % off on average; sends [V]
            latency_us=2.0, base_us=5.1, step_us=1.6, small_share=0.35, bulk_base_us=25.8, bulk_step_us=0.4,
            pair_share=0.76, ring_share=0.76, send_us=4.0, send_share=0.76,
        ),
        "xgmi": LinkConstants(  # shares [R]; fixed times are NVLink's [A], since no table of RCCL's was at hand
            latency_us=2.0, base_us=5.1, step_us=1.6, small_share=0.35, bulk_base_us=25.8, bulk_step_us=0.4,
            pair_share=0.75, ring_share=0.7, send_us=4.0, send_share=0.75,
        ),
        "pcie": LinkConstants(  # [K] RTX PRO 6000; L40S agrees for two, see presets
            latency_us=4.5, base_us=4.9, step_us=2.5, small_share=0.36, bulk_base_us=15.3, bulk_step_us=1.3,
            pair_share=0.62, ring_share=0.41, bridged_share=0.75, send_us=4.0, send_share=0.8,
        ),
        "sys": LinkConstants(  # [K] RTX PRO 6000, eight: a tenth less bandwidth than a ring inside a socket, and so for
            # other slots; bridged [V], which is also what presets say a link has; [A] pairs
            latency_us=5.0, base_us=4.9, step_us=2.8, small_share=0.196, bulk_base_us=8.4, bulk_step_us=9.0,
            pair_share=0.76, ring_share=0.516, bridged_share=1.0, send_us=4.0, send_share=0.8,
        ),
        "network": LinkConstants(  # sends [V] between H100 nodes; all-reduces [M]; [A] small_share, NVLink's
            latency_us=6.0, base_us=10.0, step_us=12.0, small_share=0.35, bulk_base_us=30.0, bulk_step_us=12.0,
            pair_share=0.8, ring_share=0.8, send_us=19.0, send_share=0.72,
        ),
        "host": LinkConstants(declared=True),
        "emulated": LinkConstants(declared=True),
    },
    generation_scale={  # [K] all-reduce of little data on A100 against H100: 1.15 (own kernels) to 1.5 (NCCL)
        "ampere": 1.3, "turing": 1.5, "volta": 1.5, "pascal": 1.5,  # [A] before Ampere
    },
    network_step_us=25.0,  # [M] 46 us for 16 GPUs on two nodes against 15-21 on one
    engines={
        "vllm": EngineConstants(  # [S]
            step_us=769.0, sequence_us=45.7, overlaps=False, light_kernels=5, fp8_kernels=4, qk_norm_kernels=1,
            mfu=mfu_table(_MFU), small_batch_slowdown=1.06, all_reduce=_VLLM_AR, python=True, handoff_us=800.0,
            hop_tensors=2, pp_gather=150.0,
            prefill_policy="mixed",  # 0.8 on (V1): one scheduler, chunks beside decodes; V0: prefill-first
            max_num_tokens=8192, reserves=False,
            max_num_seqs=256,  # vLLM 0.8 on (V1), vllm/engine/arg_utils.py, get_batch_defaults; V0: 256 everywhere
            max_num_seqs_large=1024,
            version="vLLM 0.8 or later (V1)",
        ),
        "trtllm": EngineConstants(  # [S]; handoff [P]; norms of heads counted in its 1.0: cut, copied, normed, turned
            step_us=405.0, sequence_us=55.8, overlaps=True, light_kernels=5, fp8_kernels=1, qk_norm_kernels=7,
            mfu=mfu_table(_MFU), small_batch_slowdown=1.05, all_reduce=_TRTLLM_AR, python=True, handoff_us=800.0,
            hop_tensors=1, pp_gather=150.0,  # [P] and the overview of 1.0: RTX PRO 6000, PP 4 against PP 1
            prefill_policy="mixed",  # in-flight batching: whole prompts beside decodes, chunks where enabled
            max_num_tokens=8192, reserves=True,
            max_num_seqs=2048,  # TensorRT-LLM 0.18 on, trtllm-serve --max_batch_size: BuildConfig's default
            batch_per_stage=True,
            version="TensorRT-LLM 0.18 or later",
        ),
        "sglang": EngineConstants(  # [S]; all-reduce [K]
            step_us=508.0, sequence_us=51.7, overlaps=True, light_kernels=5, fp8_kernels=4, qk_norm_kernels=3,
            mfu=mfu_table(_MFU), small_batch_slowdown=1.05, all_reduce=_SGLANG_AR, python=True, handoff_us=800.0,
            hop_tensors=2, pp_gather=150.0,
            prefill_policy="prefill-first",  # get_next_batch_to_run: a batch of new prompts before the next decode
            max_num_tokens=16384, reserves=False,
            max_num_seqs=2048,  # SGLang 0.4-0.5, resolve_max_num_reqs: 2048-4096 by context, half the cache's tokens
            version="SGLang 0.4 or 0.5",
        ),
        "fastertransformer": EngineConstants(  # [F]
            step_us=2320.0, sequence_us=5.0, overlaps=False, light_kernels=30, fp8_kernels=1, qk_norm_kernels=1,
            mfu=mfu_table(0.62), small_batch_slowdown=1.0, all_reduce=None, python=False, handoff_us=50.0,
            hop_tensors=1, pp_gather=0.0, prefill_policy="static", max_num_tokens=MOST,
            reserves=True,
            max_num_seqs=MOST,  # a library: runs the batch that it is given
            version="FasterTransformer 5",
        ),
        "generic": EngineConstants(  # nothing fitted but mfu: what is known of any server (published.fit.PRIORS)
            step_us=500.0, sequence_us=50.0, overlaps=False, light_kernels=5, fp8_kernels=3, qk_norm_kernels=1,
            mfu=mfu_table(_MFU), small_batch_slowdown=1.05, all_reduce=_VLLM_AR, python=True, handoff_us=800.0,
            hop_tensors=2, pp_gather=150.0, prefill_policy="mixed", max_num_tokens=8192,
            reserves=False,
            max_num_seqs=256,  # vLLM's, the least of the three
            version="a server that nobody has measured",
        ),
        "lab": EngineConstants(  # [G]
            step_us=70.0, sequence_us=0.0, overlaps=False, light_kernels=3, fp8_kernels=4, qk_norm_kernels=1,
            mfu=mfu_table(0.73), small_batch_slowdown=1.0,
            slowdown=((1, 1.0), (2, 1.3), (16, 1.3), (32, 1.2)),  # its product of a matrix and several vectors
            all_reduce=_LAB_AR, python=True, handoff_us=25.0,
            hop_tensors=1, pp_gather=0.0, prefill_policy="static", max_num_tokens=MOST,
            reserves=True,
            max_num_seqs=MOST,
            samples_in_turn=True,
            version="tplab.models",
            kernels={
                "hbm_share": 0.9, "matmul_fixed_us": 1.2, "attention_fixed_us": 5.3, "attention_share": 0.27,
                "python_launch_us": 60.0,
            },
        ),
    },
)  # fmt: skip
"""Constants that are used unless others are given."""
