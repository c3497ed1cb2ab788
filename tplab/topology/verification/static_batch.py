"""What the model says of one static batch through the lab's own engine: what ``verify`` can measure. Pure.

``predict`` is for a server, whose requests come and go. The lab's engine takes a batch, prefills all of it and decodes
until all are done; the same terms, put together for that. Two collectives come on top with tensor parallelism, which
serving engines fuse or hide and the latency model leaves out: the sum of the embedding, and the sampler's gathering.

Also here: the machine that a calibration describes, and a model that the lab can run in the shapes of one it cannot.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import median

import numpy as np

from tplab.collectives.cost import AlphaBeta, fit_ends, fit_line
from tplab.models.shards import Layout
from tplab.models.spec import ModelConfig, ModelSpec
from tplab.topology.advisor.allreduce import Floats, all_reduce
from tplab.topology.advisor.calibration import Calibration, SendTimes
from tplab.topology.advisor.constants import DEFAULT, Constants
from tplab.topology.advisor.latency import Server
from tplab.topology.advisor.memory import LayoutMemory
from tplab.topology.advisor.served import TERMS
from tplab.topology.advisor.steps import total
from tplab.topology.advisor.workload import EnginePolicy, Workload
from tplab.topology.machine.gpu_names import gpus_called, known_gpu, preset_of
from tplab.topology.machine.machine import Gpu, Link, Machine
from tplab.topology.machine.placement import Placement
from tplab.topology.machine.spec_sheets import GPUS

LAB = EnginePolicy(name="lab", cuda_graphs=False, chunked_prefill=None)
"""Policy of the lab's own engine."""
_BATCH_TERMS = tuple(name for name in TERMS if name not in ("prefill", "drafts"))
"""Terms of a token that a static batch of the lab's own engine has: nobody else's prompts, no guesses."""
_CPU_MEMORY_GB = 1e3
_SMALL_BYTES, _LARGE_BYTES = 1 << 15, 1 << 22
_APART = 2.5


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchTimes:
    """Predicted times of one batch in one layout."""

    ttft_ms: float
    """Time until every request has its first token, in ms."""
    tpot_ms: float
    """Time between later tokens of a request, in ms."""
    output_tokens_per_s: float
    """Output tokens per second, prefill included, of all replicas."""
    terms_ms: dict[str, float]
    """Terms of ``tpot_ms`` in ms: ``_BATCH_TERMS`` and ``ends``."""
    ttft_terms_ms: dict[str, float]
    """Terms of ``ttft_ms`` in ms: the last of ``served.TTFT_TERMS``, from ``weights`` on, and ``ends``."""


def requests_by_replica(workload: Workload, replicas: int) -> list[int]:
    """Requests of each replica, the first ones one more; replicas without any are left out.

    Raises:
        ValueError: a workload given by its request rate.
    """
    if workload.concurrency is None:
        raise ValueError(
            "a batch needs a workload with concurrency (requests in flight); this one has a request rate instead"
        )
    each, more = divmod(workload.concurrency, replicas)
    return [each + (i < more) for i in range(replicas) if each + (i < more)]


def predict_batch(
    model: ModelSpec,
    machine: Machine,
    workload: Workload,
    layouts: Sequence[Layout],
    *,
    calibration: Calibration | None,
    placements: "Sequence[Placement | None] | None" = None,
    alone: bool = False,
    cuda_graphs: bool = False,
    constants: Constants = DEFAULT,
) -> list[BatchTimes]:
    """Each layout on a static batch of ``workload.concurrency`` requests over its replicas.

    Args:
        calibration: of this machine; None: by the spec sheet and the constants.
        placements: where ranks are, for links that differ.
        alone: every rank computes as if the others did not, as with emulated compute.
        cuda_graphs: decode steps are replayed from graphs; prompts never are.
    """
    if alone and calibration is not None:
        calibration = replace(calibration, matmuls=tuple(m for m in calibration.matmuls if m.num_ranks == 1))
    policy = replace(LAB, pp_micro_batches=workload.engine.pp_micro_batches, cuda_graphs=cuda_graphs)
    workload = replace(workload, engine=policy)
    memories = [LayoutMemory.of(model, machine.gpu, workload, layout) for layout in layouts]
    server = Server.of(machine, memories, calibration=calibration, constants=constants, placements=placements)
    batch = np.array([float(requests_by_replica(workload, layout.replicas)[0]) for layout in layouts])
    return _times(server, batch, layouts)


def _times(server: Server, batch: Floats, layouts: Sequence[Layout]) -> list[BatchTimes]:
    workload, model = server.workload, server.model
    osl, isl = workload.output_length, workload.input_length
    eager = replace(server, workload=replace(workload, engine=replace(workload.engine, cuda_graphs=False)))
    prompts = eager.prompts_terms_us(batch)
    terms, k = server.token(batch)
    step = total(terms)
    width = model.hidden_size * model.activation_itemsize
    ends = _ends_us(server, batch / k * width, batch / k)
    prompts["ends"] = _ends_us(eager, batch / k * isl * width, batch / k)
    ttft = sum(prompts.values(), np.zeros_like(batch))
    tpot = step + ends if osl > 1 else np.zeros_like(ttft)
    whole = ttft + (osl - 1) * tpot
    made = []
    for i in range(len(layouts)):
        at = {name: float(np.broadcast_to(terms[name], batch.shape)[i]) / 1e3 for name in _BATCH_TERMS}
        made.append(
            BatchTimes(
                ttft_ms=float(ttft[i]) / 1e3,
                tpot_ms=float(tpot[i]) / 1e3,
                output_tokens_per_s=(workload.concurrency or 1) * osl / float(whole[i]) * 1e6,
                terms_ms={**at, "ends": float(ends[i]) / 1e3},
                ttft_terms_ms={name: float(np.broadcast_to(us, batch.shape)[i]) / 1e3 for name, us in prompts.items()},
            )
        )
    return made


def _ends_us(server: Server, embedded_bytes: Floats, sampled: Floats) -> Floats:
    """The embedding's sum, and the sampler's gathering of a logit and a token (16 bytes) of every rank."""
    groups = server.layouts.groups

    reduce_us = all_reduce(
        groups,
        kernel=server.workload.engine.all_reduce,
        graph=server.workload.engine.cuda_graphs,
        custom=None,
        constants=server.constants,
        calibration=server.calibration,
    )
    # In a ring a sum goes round twice, a gathering by direct exchange takes one message.
    gathering = reduce_us(16.0 * sampled) / np.maximum(2.0 * (groups.size - 1), 1.0)
    return np.asarray(reduce_us(embedded_bytes) + gathering, dtype=np.float64)


def machine_of(calibration: Calibration, *, memory_GB: float | None = None) -> Machine:
    """The machine that was calibrated, as ``advise`` and ``predict`` take one: links and rates as measured.

    Args:
        memory_GB: of each rank; by default the GPU's by its name, and more than enough on a CPU or an unknown GPU.

    Raises:
        ValueError: a calibration of a few collectives only, and no usual machine of those GPUs is known.
    """
    c = calibration
    gpu = _gpu_called(c.device, memory_GB) if c.backend == "nccl" else None
    if c.backend == "nccl" and (c.all_reduce or c.sends) and not c.matmuls:
        return _usual(c, gpu)
    if gpu is None:
        peak = _peak_TFLOPS(c)
        gpu = Gpu(
            name=c.device,
            memory_GB=memory_GB or _CPU_MEMORY_GB,
            hbm_GBps=c.copy_GBps or 10.0,
            bf16_TFLOPS=peak,
            kind="gpu" if c.backend == "nccl" else "cpu",
        )
    kind = "emulated" if c.emulated_links else "host"
    found = {(s.source, s.target): fit_ends(s.nbytes, s.p50_us) for s in c.sends if len(s.nbytes) > 1}
    hosts = _equal_hosts(c)
    each = len(hosts[0])
    inside = _told_apart({pair: line for pair, line in found.items() if len(hosts) == 1 or _joined(hosts, *pair)})
    rows: list[list[Link | None]] = [[None] * each for _ in range(each)]
    for i, j in combinations(range(each), 2):
        same = [inside[pair] for ranks in hosts if (pair := (ranks[i], ranks[j])) in inside]
        rows[i][j] = rows[j][i] = _link(kind, _median(same) or AlphaBeta(alpha_us=100.0, beta_GBps=1.0))
    between = _median([_long(s) for s in c.sends if len(hosts) > 1 and s.nodes > 1 and len(s.nbytes) > 1])
    return Machine(
        name=c.machine,
        gpu=gpu,
        gpus_per_node=each,
        nodes=len(hosts),
        links=tuple(map(tuple, rows)),
        network=_link("network", between) if between is not None else None,
        source="measured",
        notes=(c.badge,),
    )


def _link(kind: str, line: AlphaBeta) -> Link:
    return Link(kind=kind, bandwidth_GBps=min(line.beta_GBps, 1e4), latency_us=line.alpha_us, label=kind)


def _long(sent: SendTimes) -> AlphaBeta:
    """The line of a network, whose bandwidth is that of the longest messages: what limits its rate may let the first
    kilobytes of each message pass."""
    line = fit_ends(sent.nbytes, sent.p50_us)
    return replace(line, beta_GBps=fit_line(sent.nbytes[-2:], sent.p50_us[-2:]).beta_GBps)


def _median(lines: Sequence[AlphaBeta]) -> AlphaBeta | None:
    if not lines:
        return None
    return AlphaBeta(
        alpha_us=median(line.alpha_us for line in lines), beta_GBps=median(line.beta_GBps for line in lines)
    )


def _equal_hosts(c: Calibration) -> list[tuple[int, ...]]:
    """Ranks by host, as the messages between them say; all as one where hosts differ in their number of ranks, or have
    them in turns: those are told apart pair by pair."""
    whole = [tuple(range(c.num_ranks))]
    hosts: list[tuple[int, ...]] = []
    near = {frozenset((s.source, s.target)) for s in c.sends if s.nodes == 1}
    for rank in range(c.num_ranks):
        if hosts and frozenset((hosts[-1][0], rank)) in near:
            hosts[-1] += (rank,)
        else:
            hosts.append((rank,))
    far = {frozenset((s.source, s.target)) for s in c.sends if s.nodes > 1}
    between = {frozenset((a[0], b[0])) for a, b in combinations(hosts, 2)}
    return hosts if far and between <= far and len({*map(len, hosts)}) == 1 else whole


def _joined(hosts: Sequence[tuple[int, ...]], source: int, target: int) -> bool:
    """Whether one host has both ranks."""
    return any(source in ranks and target in ranks for ranks in hosts)


def _usual(c: Calibration, gpu: Gpu | None) -> Machine:
    """A usual machine of those GPUs, where collectives were measured and no rates: of nccl-tests, say."""
    nodes = max([1, *(sweep.nodes for sweep in c.all_reduce), *(sent.nodes for sent in c.sends)])
    lacks = "a calibration without GEMMs needs the machine beside it (machine, --machine)"
    if gpu is None:
        raise ValueError(f"{lacks}: there is no spec sheet of {c.device}")
    try:
        usual = Machine.preset(known_gpu(c.device) or gpu.name, gpus=c.num_ranks // nodes, nodes=nodes)
    except ValueError as error:
        raise ValueError(f"{lacks}: {error}") from None
    return replace(usual, notes=(*usual.notes, "a usual machine of these GPUs is taken, since none was named"))


def _gpu_called(name: str, memory_GB: float | None) -> Gpu | None:
    """The GPU of a driver's name, with the spec sheet's memory unless given; None for one without a spec sheet."""
    if memory_GB:
        return preset_of(name, memory_GB)
    called = gpus_called(name)
    return next((gpu for gpu in GPUS.values() if gpu.name in called), None)


def _told_apart(lines: dict[tuple[int, int], AlphaBeta]) -> dict[tuple[int, int], AlphaBeta]:
    """The lines of all pairs; one common line if they differ by no more than a busy machine makes them, since layouts
    would otherwise be placed by noise."""
    if not lines:
        return {}
    small, large = ([line.time_us(nbytes) for line in lines.values()] for nbytes in (_SMALL_BYTES, _LARGE_BYTES))
    if max(small) > _APART * min(small) or max(large) > _APART * min(large):
        return lines
    same = _median([*lines.values()])
    assert same is not None, "there is a line"
    return dict.fromkeys(lines, same)


def _peak_TFLOPS(c: Calibration) -> float:
    """Peak of bf16 GEMMs in TFLOP/s; fp32 counts as half of it (``Gpu.peak_TFLOPS``)."""
    rates = [2e-6 * p * t / us for m in c.matmuls for t, p, us in zip(m.tokens, m.params, m.p50_us, strict=True)]
    return max(rates, default=0.05) * (2 if c.backend != "nccl" else 1)


def runnable(spec: ModelSpec, num_layers: int, max_positions: int, dtype: str) -> ModelConfig:
    """A model of the same shapes that ``tplab.models`` runs, with so many layers.

    Raises:
        ValueError: shapes it has no layers for, by name.
    """
    for found, what in (
        (not spec.gated_mlp, "an MLP without a gate"),
        (spec.parallel_residual, "attention and MLP side by side"),
        (spec.num_positions > 0, "learned positions"),
    ):
        if found:
            raise ValueError(f"{spec.name} has {what}, which tplab.models does not run: verify a Llama of its sizes")
    shapes = {each: getattr(spec, each) for each in _SHAPES}
    windows = spec.with_layers(num_layers).windows
    return ModelConfig(**shapes, num_layers=num_layers, max_positions=max_positions, windows=windows).in_dtype(dtype)


_SHAPES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_heads", "num_kv_heads", "head_dim"),
    *("qkv_bias", "out_bias", "mlp_bias", "qk_norm", "tied_embeddings"),
)
"""What a model is run with in place of another; the rest of its mathematics is a Llama's."""
