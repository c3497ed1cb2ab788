"""``generate``: a model on a cluster, prompts in, tokens and their cost out. The one call; the rest is behind it.

The weights stay in ``rank.store`` until another model, layout or dtype is asked for: a second ``generate`` loads
nothing. One model at a time, because two layouts of the same model are twice the memory and nobody asked for both.

A fault on one rank is made known to all before any goes on: the others would wait in their first collective for ever.

No torch at import: the notebook's kernel calls this, and the work is on the ranks.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tplab.checks import ArgumentError
from tplab.cluster.rank import degrees
from tplab.cluster.run import DerivedRun
from tplab.measure import joined_badge, provenance_columns
from tplab.models.records import CheckpointError, LoadReport, RankResult, Request, Weights, check_prompts
from tplab.models.result import Generation
from tplab.models.shards import Layout
from tplab.models.spec import ModelConfig
from tplab.models.together import together
from tplab.models.tokenizer import Tokenizer
from tplab.shown import listed

if TYPE_CHECKING:
    from tplab.cluster import Cluster, Rank, Report, Run
    from tplab.layers.strategies import Blocking
    from tplab.models.loading import Loaded

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
        prompts: a text or several (the tokenizer is in the checkpoint's folder, and transformers' but for
            ``trained_model()``), or token ids.
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
    check_cuda_graphs(cuda_graphs, cluster)
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


def check_cuda_graphs(cuda_graphs: bool | None, cluster: "Cluster") -> None:
    """Raises ``ArgumentError`` where they are asked for and ranks have no GPU."""
    if cuda_graphs and cluster.backend != "nccl":
        raise ArgumentError("cuda_graphs", True, f"must be left out or False where ranks speak {cluster.backend}")


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
    """What every rank does.

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

    from tplab.models.ready import ready_engine

    engine = ready_engine(rank, loaded, request, prompts)
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


def _prompts_of(rank: "Rank", config: ModelConfig, weights: Weights, request: Request) -> list[list[int]]:
    """Token ids on every rank. Texts are turned into them on rank 0 only: importing transformers takes seconds."""
    if not request.is_text:
        return [[*prompt] for prompt in request.prompts]
    import torch.distributed as dist

    def tokenize() -> list[list[int]]:
        if rank.index:
            return []
        encode = _tokenizer(weights).encode
        prompts = [list(map(int, encode(text))) for text in request.prompts]
        check_prompts(prompts, config, request.max_new_tokens)
        return prompts

    box = [together(rank, tokenize)]
    if rank.world_size > 1:
        dist.broadcast_object_list(box, src=0, group=rank.group)
    return box[0]


def _texts_of(weights: Weights, tokens: list[list[int]]) -> list[str]:
    tokenizer = _tokenizer(weights)
    if isinstance(tokenizer, Tokenizer):
        return [tokenizer.decode(each) for each in tokens]
    return [tokenizer.decode(each, skip_special_tokens=True) for each in tokens]


def _tokenizer(weights: Weights) -> Any:
    assert weights.folder is not None
    ours = Tokenizer.of(weights.folder)
    if ours is not None:
        return ours
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ValueError(
            "prompts are texts: that needs transformers (pip install transformers), or token ids"
        ) from error
    try:
        return AutoTokenizer.from_pretrained(weights.folder)
    except Exception as error:  # whatever a parser makes of files that are missing, damaged or another's
        raise CheckpointError(
            f"no tokenizer can be read from {weights.folder}: {type(error).__name__}: {listed([error])}. Fetch its "
            f"files (tokenizer.json, ...) again, or give token ids"
        ) from error
