"""Random questions for the advisor: models, machines, layouts, loads and engines, from a seeded generator.

Far wider than what people ask, since properties must hold everywhere; every case is valid and most fit in memory.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

from tplab.lab.recorded import recorded_calibration
from tplab.models.presets import MODELS
from tplab.models.shards import Layout, divisors
from tplab.topology import Calibration, EnginePolicy, Machine, ModelSpec, Prediction, Workload, predict
from tplab.topology.advisor.calibration import AllReduceTimes, MatmulTimes, SendTimes
from tplab.topology.advisor.memory import LayoutMemory
from tplab.topology.advisor.workload import PREFILL_POLICIES
from tplab.topology.machine.machine import Gpu, Link
from tplab.topology.machine.presets import MACHINES, network, nvlink, pcie_link
from tplab.topology.machine.spec_sheets import GPUS

ENGINES = ("vllm", "vllm", "sglang", "trtllm", "generic", "fastertransformer")
RECORDED = "4xH200-2026-11-26"
_LENGTHS = (1, 2, 15, 16, 17, 128, 512, 1024, 2048, 4096, 8192, 32768)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One question, and the layout that it is asked of."""

    model: ModelSpec
    machine: Machine
    workload: Workload
    tp: int = 1
    pp: int = 1
    replicas: int = 1
    calibrated: str | None = None
    """A key of ``CALIBRATIONS``."""

    def predict(self) -> Prediction:
        """The answer; the last ones are kept."""
        return _answer(self)

    @property
    def calibration(self) -> Calibration | None:
        return CALIBRATIONS[self.calibrated] if self.calibrated else None

    def memory(self) -> LayoutMemory:
        """What the layout's ranks hold."""
        layout = Layout.of(self.model, self.tp, self.pp, self.replicas)
        return LayoutMemory.of(self.model, self.machine.gpu, self.workload, layout)

    def load(self, **changes: Any) -> "Case":
        """The case with other values in its workload."""
        return replace(self, workload=replace(self.workload, **changes))

    def engine(self, **changes: Any) -> "Case":
        """The case with other values in its engine's policy."""
        return self.load(engine=replace(self.workload.engine, **changes))

    def gpu(self, **changes: Any) -> "Case":
        """The case on other GPUs."""
        return replace(self, machine=replace(self.machine, gpu=replace(self.machine.gpu, **changes)))

    def links(self, **factors: float) -> "Case":
        """The case with all links, of the network too, scaled: ``bandwidth_GBps``, ``latency_us``."""

        def scaled(link: Link | None) -> Link | None:
            return link and replace(link, **{key: getattr(link, key) * factor for key, factor in factors.items()})

        rows = tuple(tuple(scaled(link) for link in row) for row in self.machine.links)
        return replace(self, machine=replace(self.machine, links=rows, network=scaled(self.machine.network)))

    def __str__(self) -> str:
        m, w = self.model, self.workload
        load = f"C {w.concurrency}" if w.request_rate is None else f"{w.request_rate:.4g}/s"
        sizes = "" if m.name in MODELS else f" H{m.hidden_size} L{m.num_layers} h{m.num_heads}/{m.num_kv_heads}"
        words = [
            f"({m.name}{sizes}, {m.weight_precision}, {m.kv_precision}, {_said(self.machine)}, {self.tp}, {self.pp}",
            f"{w.input_length}, {w.output_length}, {load}, {w.engine.name}",
        ]
        words += [f"replicas {self.replicas}"] if self.replicas > 1 else []
        words += [f"{key} {_short(value)}" for key, value in _unusual(w) if key not in _SAID]
        words += [f"{key} {_short(value)}" for key, value in _unusual(w.engine) if key != "name"]
        return ", ".join(words + ([f"calibration {self.calibrated}"] if self.calibrated else [])) + ")"


_SAID = ("input_length", "output_length", "concurrency", "request_rate", "engine")
_GPU_FIELDS = {"memory_GB": "GB", "hbm_GBps": "GB/s", "bf16_TFLOPS": "TFLOP/s"}


def _unusual(of: Workload | EnginePolicy) -> list[tuple[str, Any]]:
    return [(f.name, getattr(of, f.name)) for f in fields(of) if getattr(of, f.name) != f.default]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _said(machine: Machine) -> str:
    gpu, words = machine.gpu, [machine.name]
    if gpu != GPUS.get(gpu.name):
        words += [f"{getattr(gpu, key):.4g} {unit}" for key, unit in _GPU_FIELDS.items()]
    links = {link for row in machine.links for link in row if link}
    words += sorted({f"{link.kind} {link.bandwidth_GBps:.4g} GB/s {link.latency_us:.3g} us" for link in links})
    words += [str(machine.network)] if machine.network else []
    return " ".join(words)


@lru_cache(maxsize=256)
def _answer(case: Case) -> Prediction:
    return predict(
        case.model, case.machine, case.workload, case.tp, case.pp, replicas=case.replicas, calibration=case.calibration
    )


def cases(seed: int) -> Iterator[Case]:
    """Cases without end, the same for the same seed."""
    rng = random.Random(seed)
    while True:
        if case := _case(rng):
            yield case


def _case(rng: random.Random) -> Case | None:
    """One case; None where what was drawn does not go together."""
    calibrated = rng.choice(sorted(CALIBRATIONS)) if rng.random() < 0.12 else None
    machine = Machine.preset("h200", gpus=4) if calibrated == RECORDED else _machine(rng)
    model = _model(rng)
    workload = Workload(**_lengths(rng), concurrency=_concurrency(rng), engine=_engine(rng, calibrated))
    workload = replace(workload, cached_prefix=rng.choice((0.1, 0.5, 0.9, 0.97)) if rng.random() < 0.2 else 0.0)
    able = [tp for tp in divisors(model.num_heads) if tp <= machine.gpus_per_node]
    wants_fit = rng.random() < 0.97
    for _ in range(12):
        tp = rng.choice(able)
        stages = [p for p in (1, 1, 1, 2, 2, 3, 4, 8) if p * tp <= machine.num_gpus and p <= model.num_layers]
        if not stages:
            continue
        pp = rng.choice(stages)
        most = machine.num_gpus // (tp * pp)
        replicas = rng.choice((1, 1, rng.randint(1, most)))
        case = Case(
            model=model, machine=machine, workload=workload, tp=tp, pp=pp, replicas=replicas, calibrated=calibrated
        )  # fmt: skip
        try:
            Layout.of(model, tp, pp, replicas)
            made = case.predict()
        except ValueError:
            continue
        if made.fits or not wants_fit:
            return _at_rate(rng, case) if rng.random() < 0.1 else case
    return None


def saturated(case: Case) -> Prediction:
    """The case with more requests arriving than any server takes."""
    return case.load(concurrency=None, request_rate=1e9).predict()


def _at_rate(rng: random.Random, case: Case) -> Case:
    most = saturated(case).requests_per_s
    return case.load(concurrency=None, request_rate=most * rng.choice((0.01, 0.1, 0.3, 0.5, 0.7, 0.8, 0.95, 1.2)))


def _log_uniform(rng: random.Random, low: float, high: float) -> float:
    return low * (high / low) ** rng.random()


def _lengths(rng: random.Random) -> dict[str, int]:
    return {
        key: rng.choice(_LENGTHS) if rng.random() < 0.4 else round(_log_uniform(rng, 1, most))
        for key, most in (("input_length", 100_000), ("output_length", 16_000))
    }


def _concurrency(rng: random.Random) -> int:
    if rng.random() < 0.4:
        return rng.choice((1, 2, 8, 15, 16, 17, 32, 63, 64, 65, 128, 255, 256, 257, 1024))
    return round(_log_uniform(rng, 1, rng.choice((64, 1024, 1024, 100_000))))


def _engine(rng: random.Random, calibrated: str | None) -> EnginePolicy:
    def maybe(chance: float, value: Any, otherwise: Any) -> Any:
        return value if rng.random() < chance else otherwise

    return EnginePolicy(
        name="lab" if calibrated and rng.random() < 0.5 else rng.choice(ENGINES),
        cuda_graphs=rng.random() < 0.8,
        all_reduce=maybe(0.15, rng.choice(("nccl", "one-shot", "two-shot", "ring")), "auto"),
        pp_micro_batches=maybe(0.1, rng.choice((1, 2, 3, 8)), None),
        # Engines refuse a budget below their largest batch: 256 sequences and more.
        chunked_prefill=rng.choice((8192, 8192, 2048, 512, 16384, None, round(_log_uniform(rng, 256, 65536)))),
        gpu_memory_utilization=rng.choice((0.9, 0.9, 0.8, 0.95, 0.5)),
        prefill_policy=maybe(0.5, rng.choice(PREFILL_POLICIES), "auto"),
        max_num_seqs=maybe(0.4, rng.choice((1, 8, 16, 17, 64, 128, 256, 1024, 2048, 4096)), None),
        **(_speculation(rng) if rng.random() < 0.15 else {}),
    )


def _speculation(rng: random.Random) -> dict[str, Any]:
    return {
        "speculative_tokens": rng.choice((1, 2, 4, 7)),
        "acceptance": rng.choice((0.7, 0.3, 0.9, rng.random())),
        "draft_cost": rng.choice((0.05, 0.01, 0.3)),
    }


def _model(rng: random.Random) -> ModelSpec:
    weights = rng.choice(("bf16", "bf16", "fp16", "fp8", "fp8", "int8", "int4", "fp4"))
    precision = {"weight_precision": weights, "kv_precision": rng.choice(("bf16", "bf16", "fp8"))}
    if rng.random() < 0.7:
        return ModelSpec.from_config(rng.choice(sorted(MODELS)), **precision)
    heads = rng.choice((1, 2, 4, 6, 8, 12, 16, 20, 32, 40, 64, 96))
    head_dim = rng.choice((64, 128, 128, 256))
    made = ModelSpec.from_config(
        {
            "model_type": rng.choice(("llama", "qwen2", "qwen3")),
            "hidden_size": heads * head_dim,
            "num_hidden_layers": rng.randint(1, 100),
            "num_attention_heads": heads,
            "num_key_value_heads": rng.choice(divisors(heads)),
            "head_dim": head_dim,
            "intermediate_size": 64 * round(heads * head_dim * rng.uniform(1, 5) / 64),
            "vocab_size": rng.choice((1000, 32000, 50257, 128256, 262144)),
            "max_position_embeddings": 131072,
            "tie_word_embeddings": rng.random() < 0.3,
            "torch_dtype": "bfloat16",
        },
        **precision,
    )
    return replace(made, name="random")


_FEW_GPUS = ("gb10", "gh200", "rtx-pro-6000-workstation")
"""Nodes of fewer than eight GPUs."""


def _machine(rng: random.Random) -> Machine:
    kind = rng.random()
    if kind < 0.6:
        name = rng.choice([each for each in MACHINES if not each.startswith(_FEW_GPUS)])
        nodes = rng.choice((1, 1, 1, 1, 2, 4))
        return Machine.preset(name, gpus=rng.choice((1, 2, 4, 4, 8)), nodes=nodes)
    gpu = GPUS[rng.choice(sorted(GPUS))] if rng.random() < 0.5 else _gpu(rng)
    gpus, nodes = rng.choice((1, 2, 2, 4, 8)), rng.choice((1, 1, 1, 2))
    between = network(rng.choice((1, 4, 8)), 8, rng.choice((1.25, 12.5, 50.0))) if nodes > 1 else None
    if kind < 0.9:
        made = Machine.uniform(gpu, gpus, _link(rng, gpu), nodes=nodes, network=between)
        return made if nodes == 1 or rng.random() < 0.5 else replace(made, network=replace(between, latency_us=50.0))
    links: list[list[Link | None]] = [[None] * gpus for _ in range(gpus)]
    for i in range(gpus):
        for j in range(i):
            links[i][j] = links[j][i] = _link(rng, gpu)
    rows = tuple(map(tuple, links))
    return Machine(
        name=f"{gpus} x {gpu.name}", gpu=gpu, gpus_per_node=gpus, nodes=nodes, links=rows, network=between
    )  # fmt: skip


def _gpu(rng: random.Random) -> Gpu:
    hbm = _log_uniform(rng, 200, 9000)
    bf16 = 1e-3 * hbm * _log_uniform(rng, 35, 500)  # FLOP/s per byte/s: 37 of an H20 to 420 of an L40S
    narrow = rng.random() < 0.5
    return Gpu(
        name="made-up",
        memory_GB=_log_uniform(rng, 8, 300),
        hbm_GBps=hbm,
        bf16_TFLOPS=bf16,
        fp8_TFLOPS=2 * bf16 if narrow else None,
        int8_TOPS=2 * bf16 if rng.random() < 0.7 else None,
        fp4_TFLOPS=4 * bf16 if narrow and rng.random() < 0.3 else None,
        nvlink_GBps=25.0,
        num_nvlinks=12,
    )


def _link(rng: random.Random, gpu: Gpu) -> Link:
    kind = rng.choice(("nvlink", "nvswitch", "pix", "phb", "node", "sys", "emulated"))
    if kind in ("nvlink", "nvswitch"):
        link = nvlink(replace(gpu, nvlink_GBps=gpu.nvlink_GBps or 25.0), rng.choice((1, 2, 4, 12, 18)))
    elif kind == "emulated":
        link = Link(kind=kind, bandwidth_GBps=_log_uniform(rng, 0.01, 100), latency_us=_log_uniform(rng, 1, 10_000))
    else:
        link = pcie_link(kind, gpu)
    return replace(link, kind=kind, latency_us=link.latency_us * rng.choice((1, 1, 1, 10)))


MADE_UP = Calibration(
    machine="made up",
    device="a GPU that nobody has",
    backend="nccl",
    num_ranks=4,
    created="2026-11-28",
    versions={},
    all_reduce=tuple(
        AllReduceTimes(
            num_ranks=n, launch=launch, nbytes=(1e3, 1e5, 1e7), p50_us=(extra + 4.0 * n, extra + 5.0 * n, 70.0 * n)
        )
        for n in (2, 4)
        for launch, extra in (("graph", 0.0), ("eager", 20.0))
    ),
    sends=(SendTimes(source=0, target=1, nbytes=(1e3, 1e6, 1e8), p50_us=(9.0, 14.0, 600.0)),),
    matmuls=tuple(
        MatmulTimes(
            precision=precision,
            tokens=(1, 1, 64, 64, 1024, 1024, 8192, 8192),
            params=(1e6, 1e8) * 4,
            p50_us=tuple(us * scale for us in (3.5, 75.0, 4.0, 80.0, 9.0, 300.0, 30.0, 2400.0)),
        )
        for precision, scale in (("bf16", 1.0), ("fp8", 0.6))
    ),
    copy_GBps=2500.0,
    kv_read_GBps=2300.0,
    prompt_attention_TFLOPS=350.0,
    launch_us=5.0,
    block_overhead_us=20.0,
    block_overhead_per_width_us=0.001,
    step_overhead_us=300.0,
    handoff_us=60.0,
)
"""A calibration of no machine: smooth curves, unlike a recorded one's."""
CALIBRATIONS = {RECORDED: recorded_calibration(RECORDED), "made up": MADE_UP}
