"""``generate``: a model on a cluster, prompts in, tokens and their cost out. The one call; the rest is behind it.

The weights stay in ``rank.store`` until another model, layout or dtype is asked for: a second ``generate`` loads
nothing. One model at a time, because two layouts of the same model are twice the memory and nobody asked for both.

A fault on one rank is made known to all before any goes on: the others would wait in their first collective for ever.

No torch at import: the notebook's kernel calls this, and the work is on the ranks.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tplab.checks import ArgumentError
from tplab.cluster.rank import degrees
from tplab.cluster.run import DerivedRun
from tplab.measure import joined_badge, provenance_columns
from tplab.models.records import CheckpointError, LoadReport, RankResult, Request, Weights, check_prompts
from tplab.models.result import Generation
from tplab.models.shards import Layout
from tplab.models.spec import ModelConfig
from tplab.shown import listed

if TYPE_CHECKING:
    from tplab.cluster import Cluster, Rank, Report, Run
    from tplab.layers.strategies import Blocking
    from tplab.models.engine import GenerationEngine
    from tplab.models.loading import Loaded

T = TypeVar("T")
_KEY = "tplab.models"
OnToken = Callable[[int, int], None]
"""Called with the number of a sequence and its next token."""


def generate(
    cluster: "Cluster",
    model: "str | Path | ModelConfig",
    prompts: Any,
    *,
    tp: int | None = None,
    pp: int | None = None,
    timeout: float | None = 600.0,
    **settings: Any,
) -> Generation:
    """Load ``model`` onto the ranks of ``cluster``, unless it is there already, and continue ``prompts``.

    ::

        with Cluster(4) as cluster:
            result = generate(cluster, "path/to/checkpoint", ["Once upon a time"], tp=2, pp=2, max_new_tokens=64)
            result.texts, result.ttft_s, result.output_tokens_per_s

    Args:
        model: folder of a Hugging Face checkpoint, or a ``ModelConfig``, whose weights are then made up by
            ``weights_seed`` (0), the same for every layout.
        prompts: a text or several (transformers' tokenizer, from the checkpoint's folder), or token ids.
        tp, pp: degrees; the one left out takes the ranks that are left, both left out: ``tp`` takes all.
        timeout: seconds for loading and generating; None: no limit.
        settings: as for :func:`submit_generate`.

    Raises:
        ValueError: an argument that cannot work, before anything is started; prompts that are texts, on the ranks.
        CheckpointError: as the cause of a ``RankError``: what is wrong with the checkpoint, raised by every rank.
        ClusterError: the cluster's other faults.
    """
    __tracebackhide__ = True
    return submit_generate(cluster, model, prompts, tp=tp, pp=pp, timeout=timeout, **settings).result()


def submit_generate(
    cluster: "Cluster",
    model: "str | Path | ModelConfig",
    prompts: Any,
    *,
    tp: int | None = None,
    pp: int | None = None,
    stages: Sequence[int] | None = None,
    max_new_tokens: int = 32,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop_tokens: Sequence[int] | None = None,
    num_micro_batches: int | None = None,
    dtype: str | None = None,
    weights_seed: int = 0,
    margins: bool = False,
    strategy: "Blocking | None" = None,
    cuda_graphs: bool | None = None,
    on_token: OnToken | None = None,
    on_report: "Callable[[Report], None] | None" = None,
    timeout: float | None = 600.0,
) -> "GenerationRun":
    """Like :func:`generate`, without waiting: a handle with ``result()``, ``stop()`` and ``tokens`` so far.

    Args:
        stages: layers per stage; as even as possible by default.
        max_new_tokens: a sequence ends after so many, or with a stop token.
        temperature, top_k, top_p, seed: 0: the likeliest token; else a draw. The same seed gives the same tokens in
            every layout (in float32: rounding may decide otherwise between layouts in narrower dtypes).
        stop_tokens: the config's by default; ``()`` for none.
        num_micro_batches: k; by default one per stage, or per prompt if there are fewer.
        dtype: of weights, keys and values; by default the config's, and where it names none, that of the tensors.
        margins: also return how far ahead the likeliest token was.
        strategy: how the layers communicate in prefill, from ``tplab.layers``.
        cuda_graphs: whether decode steps are replayed from CUDA graphs; None: wherever that works, and
            ``Generation.decode`` says why not elsewhere. False: the same kernels one by one, to compare.
        on_token: called with each token as rank 0 learns it, on the cluster's own thread: it must be quick.
        on_report: called with each report of a rank: ``phase`` is ``load`` or ``generate``, with ``done`` and
            ``total``.
    """
    tp, pp = degrees(cluster.num_ranks, tp, pp)
    config, weights = Weights.of(model, weights_seed)
    if dtype is not None:
        config = config.in_dtype(dtype)
    layout = Layout.of(config, tp, pp, layers_of_stage=stages)
    request = Request.of(
        prompts,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop_tokens=tuple(config.stop_tokens if stop_tokens is None else stop_tokens),
        num_micro_batches=1 if num_micro_batches is None else num_micro_batches,
        margins=margins,
        stream=on_token is not None,
        strategy=strategy,
        cuda_graphs=cuda_graphs,
    )
    if cuda_graphs and cluster.backend != "nccl":
        raise ArgumentError("cuda_graphs", True, f"must be left out or False where ranks speak {cluster.backend}")
    if num_micro_batches is None:
        request = replace(request, num_micro_batches=min(pp, len(request.prompts)))
    if request.is_text:
        if weights.folder is None:
            raise ValueError("prompts are texts, but a model made up by seed has no tokenizer: give token ids")
    else:
        check_prompts(request.prompts, config, max_new_tokens)  # type: ignore[arg-type]
    tokens: list[list[int]] = [[] for _ in request.prompts]

    def deliver(report: "Report") -> None:
        for sequence, token in report.fields.get("tokens", ()):
            tokens[sequence].append(token)
            if on_token is not None:
                on_token(sequence, token)
        if on_report is not None:
            on_report(report)

    def build(run: "Run[RankResult]") -> Generation:
        return generation_of(cluster, run.result(), layout, request)

    run = cluster.submit(generate_on_rank, config, weights, layout, request, timeout=timeout, on_report=deliver)
    return GenerationRun(run, build, tokens)


def generation_of(cluster: "Cluster", results: Sequence[RankResult], layout: Layout, request: Request) -> Generation:
    """What the ranks of ``cluster`` sent, put together."""
    graphs = all(result.eager_because is None for result in results)
    return Generation.of(
        results,
        layout=layout,
        num_micro_batches=request.num_micro_batches,
        stop_tokens=request.stop_tokens,
        badge=joined_badge(cluster.provenance.badge, "CUDA graphs" if graphs else ""),
        provenance=provenance_columns(cluster.provenance, launch_mode="graph" if graphs else None),
    )


class GenerationRun(DerivedRun[Generation]):
    """A generation under way: a ``concurrent.futures.Future`` of the :class:`Generation`."""

    def __init__(
        self, run: "Run[RankResult]", build: "Callable[[Run[RankResult]], Generation]", tokens: list[list[int]]
    ) -> None:
        super().__init__(run, build)
        self.tokens = tokens
        """What has come so far of each sequence, where ``on_token`` was given; also of a run that was stopped."""


def generate_on_rank(
    rank: "Rank", config: ModelConfig, weights: Weights, layout: Layout, request: Request
) -> RankResult:
    """What every rank does. Also for ``torchrun``, with a ``Rank`` from ``tplab.cluster.torchrun.attached``.

    Args:
        rank: this rank.
        config, weights: the model, and where its weights come from.
        layout: how it is sharded over the ranks.
        request: what is asked of it.
    """
    prompts = _prompts_of(rank, config, weights, request)
    loaded, load = ensure_loaded(rank, config, weights, layout)
    result = generate_loaded(rank, loaded, request, prompts)
    texts = _texts_of(weights, result.tokens) if request.is_text and rank.index == 0 else None
    return replace(result, load=load, texts=texts)


def generate_loaded(rank: "Rank", loaded: "Loaded", request: Request, prompts: list[list[int]]) -> RankResult:
    """The same for a stage that is there, wherever its weights are from. All ranks do it together."""
    import torch.distributed as dist

    engine = _engine(rank, loaded, request, prompts)
    if rank.world_size > 1:
        dist.barrier(group=rank.group)  # all start together, and NCCL has connected
    engine.run()
    is_last = loaded.stage.spec.last
    return RankResult(
        tokens=engine.tokens,
        margins=engine.margins if request.margins and is_last else None,
        token_s=engine.token_s,
        start_s=engine.start_s,
        spans=engine.activities,
        eager_because=engine.eager_because,
        capture_s=engine.capture_s,
        load=loaded.report,
        kv_bytes=engine.kv_bytes,
        prompts=prompts,
        texts=None,
    )


def ensure_loaded(rank: "Rank", config: ModelConfig, weights: Weights, layout: Layout) -> "tuple[Loaded, LoadReport]":
    """This rank's stage, loaded unless it is there already; and what that cost this time. Runs on every rank.

    Raises on every rank what any rank met: see :func:`together`.
    """
    key = (config, weights, layout)
    fits = rank.store.get(_KEY, (None, None))[0] == key
    # A rank that failed last time has nothing while others have: they agree on whether to load.
    if together(rank, lambda: fits, all_of=True):
        loaded: Loaded = rank.store[_KEY][1]
        return loaded, LoadReport(load_s=0.0, read_bytes=0, weight_bytes=loaded.report.weight_bytes, peak_bytes=0)
    from tplab.models.loading import load_stage, tensor_parallel_comm

    rank.store.pop(_KEY, None)  # before the next one is allocated
    comm = tensor_parallel_comm(rank, layout)
    loaded = together(rank, lambda: load_stage(rank, config, weights, layout, comm))
    rank.store[_KEY] = key, loaded
    return loaded, loaded.report


def unload(rank: "Rank") -> None:
    """Let the weights on this rank go."""
    rank.store.pop(_KEY, None)


def together(rank: "Rank", work: Callable[[], T], *, all_of: bool = False) -> T:
    """Do ``work`` on every rank; if it raises on any, every rank raises, so that none waits for one that is gone.

    Two small collectives at most. With ``all_of`` the result is whether every rank's was true.

    Raises:
        CheckpointError: naming the rank, where the fault was another's; else the fault itself.
    """
    import torch
    import torch.distributed as dist

    error: Exception | None = None
    result: Any = None
    try:
        result = work()
    except Exception as raised:
        error = raised
    flags = torch.tensor([0 if error is None else 1, 0 if result else 1], device=rank.device)
    if rank.world_size > 1:
        dist.all_reduce(flags, group=rank.group)
    num_failed, num_false = flags.tolist()
    if num_failed:
        what = None if error is None else f"{type(error).__name__}: {error}"
        heard: list[Any] = [what]
        if rank.world_size > 1:
            heard = [None] * rank.world_size
            dist.all_gather_object(heard, what, group=rank.group)
        if error is not None:
            raise error
        first = next(index for index, said in enumerate(heard) if said is not None)
        raise CheckpointError(f"rank {first} failed, so no rank went on: {heard[first]}")
    answer: T = num_false == 0 if all_of else result
    return answer


def _engine(rank: "Rank", loaded: "Loaded", request: Request, prompts: list[list[int]]) -> "GenerationEngine":
    """The engine, ready to run: with its caches, and with its decode steps captured where they are to be."""
    from tplab.models.engine import step_shapes, why_eager

    shapes = step_shapes(request, prompts)
    graphs = together(rank, lambda: why_eager(loaded, request)) is None
    # A rank that failed last time has none while others have, and capturing takes all that share a stage.
    if graphs and not together(rank, lambda: loaded.kept.has(shapes), all_of=True):
        loaded.kept.forget(shapes)
    engine = together(rank, lambda: _make_engine(rank, loaded, request, prompts))
    fault: list[Exception] = []

    def prepare() -> bool:
        try:
            engine.prepare()
        except Exception as error:
            if request.cuda_graphs or not graphs:
                raise
            fault.append(error)
        return not fault

    if not together(rank, prepare, all_of=True):
        what = listed([f"{type(each).__name__}: {each}" for each in fault]) or "another rank failed"
        engine.give_up_graphs(f"capturing did not work ({what})")
        engine.prepare()
    return engine


def _make_engine(rank: "Rank", loaded: "Loaded", request: Request, prompts: list[list[int]]) -> "GenerationEngine":
    """The engine with its caches, after a look whether they fit."""
    from tplab.collectives.transport import NullTransport, ProcessGroupTransport
    from tplab.models.engine import GenerationEngine, why_eager

    needed, longest = _cache_bytes(loaded, request, prompts, to_capture=why_eager(loaded, request) is None)
    if needed > _free_bytes(rank):
        loaded.kept.drop()
    free = _free_bytes(rank)
    if needed > free:
        raise MemoryError(
            f"keys and values of {len(prompts)} sequences of {longest} tokens take "
            f"{needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free on {rank.device}: use fewer or shorter prompts, "
            f"a smaller max_new_tokens, or dtype='bfloat16'"
        )
    # A message at a time: NCCL then has a connection for every pair of ranks, and none waits for another's.
    p2p = ProcessGroupTransport(rank.group, batched=False) if rank.world_size > 1 else NullTransport()
    return GenerationEngine(loaded, request, prompts, p2p, report=rank.report if rank.index == 0 else None)


def _cache_bytes(
    loaded: "Loaded", request: Request, prompts: list[list[int]], *, to_capture: bool
) -> tuple[float, int]:
    """Bytes of the caches that are to be made, on all ranks that share this one's memory, and places of the longest."""
    from tplab.models.engine import most_in_caches, step_shapes

    if loaded.stage.why_no_decode() is None:
        shapes = step_shapes(request, prompts)
        if to_capture and loaded.kept.has(shapes):
            return 0.0, 0
        sizes = [(shape.batch, shape.capacity) for shape in shapes]
    else:
        parts = [prompts[start:end] for start, end in request.micro_batches()]
        sizes = [(len(part), most_in_caches(request, part)) for part in parts]
    places = sum(batch * length for batch, length in sizes)
    return loaded.kv_bytes_per_token * places, max(length for _, length in sizes)


def _free_bytes(rank: "Rank") -> float:
    if rank.device.type == "cuda":
        import torch

        # What torch's allocator holds and nobody uses is free, too.
        held = torch.cuda.memory_reserved(rank.device) - torch.cuda.memory_allocated(rank.device)
        return torch.cuda.mem_get_info(rank.device)[0] + held
    import psutil

    return int(psutil.virtual_memory().available)


def _prompts_of(rank: "Rank", config: ModelConfig, weights: Weights, request: Request) -> list[list[int]]:
    """Token ids on every rank. Texts are turned into them on rank 0 only: importing transformers takes seconds."""
    if not request.is_text:
        return [[*prompt] for prompt in request.prompts]
    import torch.distributed as dist

    def tokenize() -> list[list[int]]:
        if rank.index:
            return []
        prompts = [list(map(int, _tokenizer(weights)(text)["input_ids"])) for text in request.prompts]
        check_prompts(prompts, config, request.max_new_tokens)
        return prompts

    box = [together(rank, tokenize)]
    if rank.world_size > 1:
        dist.broadcast_object_list(box, src=0, group=rank.group)
    return box[0]


def _texts_of(weights: Weights, tokens: list[list[int]]) -> list[str]:
    tokenizer = _tokenizer(weights)
    return [tokenizer.decode(each, skip_special_tokens=True) for each in tokens]


def _tokenizer(weights: Weights) -> Any:
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ValueError(
            "prompts are texts: that needs transformers (pip install transformers), or token ids"
        ) from error
    assert weights.folder is not None
    try:
        return AutoTokenizer.from_pretrained(weights.folder)
    except Exception as error:  # whatever a parser makes of files that are missing, damaged or another's
        raise CheckpointError(
            f"no tokenizer can be read from {weights.folder}: {type(error).__name__}: {listed([error])}. Fetch its "
            f"files (tokenizer.json, ...) again, or give token ids"
        ) from error
