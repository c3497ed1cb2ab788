"""Generation beside transformers, token for token, on every layout; and what must not depend on the layout.

float32 unless said otherwise. Greedy tokens are equal, not close: random models of these sizes have margins of some
0.01 between the likeliest token and the next, against errors of 1e-5 in the logits (``test_logits``).
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tplab.cluster import Rank, RunStopped
from tplab.models.checkpoint import RandomWeights, save_checkpoint
from tplab.models.generation import generate, submit_generate
from tplab.models.result import compare
from tplab.models.shards import kv_bytes, weight_bytes
from tplab.models.spec import ModelConfig

NEW = 12
LAYOUTS = [(1, 1), (2, 1), (1, 2), (4, 1), (2, 2), (1, 4)]
PROMPTS = [
    torch.randint(0, 1009, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    for length in (9, 4, 13, 1, 6)
]
SCALED = {"factor": 4.0, "rope_theta": 100.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama, tied, biases": {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    "llama, linear rope": {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 1e4}},
    "llama, yarn": {"rope_parameters": SCALED | {"rope_type": "yarn", "original_max_position_embeddings": 14}},
    "llama, dynamic": {"rope_parameters": SCALED | {"rope_type": "dynamic"}, "max_position_embeddings": 14},
    "llama, longrope": {
        "rope_parameters": SCALED
        | {"rope_type": "longrope", "original_max_position_embeddings": 14}
        | {"short_factor": [1.0] * 8, "long_factor": [1.0 + place for place in range(8)]}
    },
    "mistral": {},
    "mistral, no window": {"sliding_window": None},
    "qwen2": {},
    "qwen2, untied": {"tie_word_embeddings": False},
    "qwen3": {},
    "qwen3, biases": {"attention_bias": True, "use_sliding_window": False},
    "gemma": {},
}
BY_LENGTH = ("llama, dynamic", "llama, longrope")
"""Their angles depend on the longest prompt of the batch, in transformers as here: longer than the model's length."""


class Judge:
    """A checkpoint of each variant, and what transformers makes of the prompts."""

    def __init__(self, families: dict[str, dict[str, Any]], folder: Path) -> None:
        self._families, self._folder = families, folder
        self._known: dict[tuple[str, torch.dtype, str], tuple[list[list[int]], list[torch.Tensor]]] = {}

    def keys(self, variant: str) -> dict[str, Any]:
        return self._families[variant.split(",")[0]] | VARIANTS[variant]

    def checkpoint(self, variant: str) -> Path:
        folder = self._folder / variant.replace(", ", "-").replace(" ", "_")
        if not folder.exists():
            config = ModelConfig.from_hf(self.keys(variant))
            save_checkpoint(folder, config, RandomWeights(config, 3), max_shard_bytes=100_000)
        return folder

    def model(self, variant: str, dtype: torch.dtype = torch.float32) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.checkpoint(variant), dtype=dtype)

    def greedy(
        self, variant: str, dtype: torch.dtype = torch.float32, which: slice = slice(None)
    ) -> tuple[list[list[int]], list[torch.Tensor]]:
        """New tokens of every prompt, or some, as one batch; and the logits (B, V) of every step."""
        key, prompts = (variant, dtype, str(which)), PROMPTS[which]
        if key not in self._known:
            longest = max(map(len, prompts))
            ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
            mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
            with torch.inference_mode():
                out = self.model(variant, dtype).generate(
                    ids,
                    attention_mask=mask,
                    max_new_tokens=NEW,
                    do_sample=False,
                    eos_token_id=None,
                    pad_token_id=0,
                    return_dict_in_generate=True,
                    output_logits=True,
                )
            self._known[key] = out.sequences[:, longest:].tolist(), list(out.logits)
        return self._known[key]


@pytest.fixture(scope="module")
def judge(families: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Judge:
    return Judge(families, tmp_path_factory.mktemp("checkpoints"))


@pytest.mark.sampled(every=6)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"tp={layout[0]}, pp={layout[1]}")
def test_greedy_is_token_exact(layout: tuple[int, int], variant: str, judge: Judge, clusters: Any) -> None:
    tp, pp = layout
    want, _ = judge.greedy(variant)
    got = generate(clusters[tp * pp], judge.checkpoint(variant), PROMPTS, tp=tp, pp=pp, max_new_tokens=NEW)
    assert got.tokens == want
    assert got.finish == ["length"] * len(PROMPTS)
    if pp == 1:  # each prompt alone: padding changes nothing
        alone = generate(clusters[tp], judge.checkpoint(variant), PROMPTS[1], tp=tp, pp=1, max_new_tokens=NEW)
        assert alone.tokens == (judge.greedy(variant, which=slice(1, 2))[0] if variant in BY_LENGTH else want[1:2])


def every_logit(rank: Rank, folder: str, steps: list[list[int]]) -> torch.Tensor:
    """(steps, B, V) on the ranks of one stage, fed with the tokens that the reference chose."""
    from tplab.layers.comm import as_comm
    from tplab.layers.vocabulary import gather_logits
    from tplab.models.checkpoint import Checkpoint, fill
    from tplab.models.decoder import Padding, Stage
    from tplab.models.shards import Layout

    config = ModelConfig.from_hf(folder)
    layout = Layout.of(config, rank.world_size)
    stage = Stage(config, layout.spec(0), as_comm(rank.group), dtype=torch.float32)
    fill(stage, Checkpoint(folder, config))
    padding = Padding([len(prompt) for prompt in PROMPTS], 40, rank.device)
    caches = stage.make_caches(len(PROMPTS), 40)
    inputs = [padding.ids(PROMPTS), *(torch.tensor(tokens)[:, None] for tokens in zip(*steps, strict=True))]
    with torch.inference_mode():
        shards = [stage(x, padding=padding, caches=caches) for x in inputs[:-1]]
        return torch.stack([gather_logits(shard, stage.vocab, stage.comm) for shard in shards])


@pytest.mark.parametrize("n", [1, 2, 4])
def test_logits(n: int, judge: Judge, clusters: Any) -> None:
    """The stated error: 1e-5 of the largest logit, at every step."""
    for variant in VARIANTS:
        tokens, logits = judge.greedy(variant)
        want = torch.stack(logits)
        for got in clusters[n].run(every_logit, str(judge.checkpoint(variant)), tokens):
            error = float((got - want).abs().max() / want.abs().max())
            print(f"{variant}, tp={n}: largest error {error:.1e} of the largest logit")
            assert error < 1e-5


def test_bfloat16_reports_agreement_and_near_ties(judge: Judge, clusters: Any) -> None:
    for variant, layouts in (("llama", LAYOUTS), ("qwen2", LAYOUTS[:3]), ("qwen3", LAYOUTS[:3])):
        want, logits = judge.greedy(variant, torch.bfloat16)
        tie = 2 * 2**-8 * max(float(step.abs().max()) for step in logits)  # two roundings of the largest logit
        for tp, pp in layouts:
            folder = judge.checkpoint(variant)
            got = generate(
                clusters[tp * pp], folder, PROMPTS, tp=tp, pp=pp, max_new_tokens=NEW, dtype="bfloat16", margins=True
            )
            agreement = compare(got, want, tie=tie)
            print(f"{variant}, tp={tp}, pp={pp}: {agreement}")
            assert agreement.total == NEW * len(PROMPTS)
            assert len(agreement.partings) == sum(a != b for a, b in zip(got.tokens, want, strict=True))
            # Where the two part, the call was close: otherwise it is a fault and not a rounding.
            assert all(margin <= tie for _, _, margin in agreement.partings)
            assert agreement.near_ties >= len(agreement.partings)


def test_margins_are_the_distance_to_the_second(judge: Judge, clusters: Any) -> None:
    want, logits = judge.greedy("llama")
    for tp, pp in LAYOUTS:
        got = generate(
            clusters[tp * pp], judge.checkpoint("llama"), PROMPTS, tp=tp, pp=pp, max_new_tokens=NEW, margins=True
        )
        assert got.tokens == want
        top = torch.stack(logits).topk(2).values
        torch.testing.assert_close(torch.tensor(got.margins), (top[..., 0] - top[..., 1]).T, atol=1e-4, rtol=0)


SETTINGS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.9, "top_k": 40, "top_p": 0.9},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_seed_gives_the_same_tokens_in_every_layout(settings: dict[str, Any], judge: Judge, clusters: Any) -> None:
    config = ModelConfig.from_hf(judge.keys("llama"))
    want = generate(clusters[1], config, PROMPTS, seed=7, max_new_tokens=NEW, weights_seed=3, **settings).tokens
    for tp, pp in LAYOUTS:
        for k in (1, 5) if pp > 1 else (2,):
            got = generate(
                clusters[tp * pp], config, PROMPTS, tp=tp, pp=pp, seed=7, max_new_tokens=NEW, weights_seed=3,
                num_micro_batches=k, **settings,
            )  # fmt: skip
            assert got.tokens == want, (tp, pp, k)
    two = generate(clusters[1], config, PROMPTS[:2], seed=7, max_new_tokens=NEW, weights_seed=3, **settings)
    assert two.tokens == want[:2], "a sequence draws the same whoever is beside it"
    other = generate(clusters[1], config, PROMPTS, seed=8, max_new_tokens=NEW, weights_seed=3, **settings)
    assert other.tokens != want
    assert len({tuple(tokens) for tokens in want}) == len(PROMPTS)


def test_the_same_prompt_twice_is_drawn_apart(judge: Judge, clusters: Any) -> None:
    config = ModelConfig.from_hf(judge.keys("llama"))
    got = generate(clusters[1], config, [PROMPTS[0]] * 2, temperature=1.0, max_new_tokens=NEW)
    assert got.tokens[0] != got.tokens[1]


@pytest.mark.parametrize("stages", [(3, 1), (1, 3)])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_uneven_stages_and_micro_batches(stages: tuple[int, int], k: int, judge: Judge, clusters: Any) -> None:
    want, _ = judge.greedy("qwen3")
    got = generate(
        clusters[4], judge.checkpoint("qwen3"), PROMPTS, tp=2, pp=2, stages=stages, num_micro_batches=k,
        max_new_tokens=NEW,
    )  # fmt: skip
    assert got.tokens == want
    config = ModelConfig.from_hf(judge.keys("qwen3")).in_dtype("float32")
    assert [load.weight_bytes for load in got.loads] == [
        weight_bytes(config, got.layout, *got.layout.place(rank)) for rank in range(4)
    ]
    ends = [(0, 5)] if k == 1 else [(0, 2), (2, 4), (4, 5)] if k == 3 else [(i, i + 1) for i in range(5)]
    lengths = [max(len(prompt) for prompt in PROMPTS[start:end]) + NEW - 1 for start, end in ends]
    for rank in range(4):
        told = [
            kv_bytes(config, got.layout, *got.layout.place(rank), requests=end - start, context=length)
            for (start, end), length in zip(ends, lengths, strict=True)
        ]
        assert got.kv_bytes[rank] == sum(told)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_stop_tokens_end_their_sequence_only(layout: tuple[int, int], judge: Judge, clusters: Any) -> None:
    tp, pp = layout
    want, _ = judge.greedy("mistral")
    stops = {want[0][0], want[2][4], want[4][-1]}
    cut = []
    for tokens in want:
        end = next((place + 1 for place, token in enumerate(tokens) if token in stops), NEW)
        cut.append(tokens[:end])
    for k in (1, 5):
        got = generate(
            clusters[tp * pp], judge.checkpoint("mistral"), PROMPTS, tp=tp, pp=pp, max_new_tokens=NEW,
            stop_tokens=[*stops], num_micro_batches=k,
        )  # fmt: skip
        assert got.tokens == cut
        assert got.finish == ["stop" if tokens[-1] in stops else "length" for tokens in cut]
    assert len({len(tokens) for tokens in cut}) > 2


def test_the_stop_tokens_of_the_config_are_the_default(judge: Judge, clusters: Any) -> None:
    want, _ = judge.greedy("llama")
    config = ModelConfig.from_hf(judge.keys("llama") | {"eos_token_id": [want[0][2], want[1][1]]})
    first = generate(clusters[1], config, PROMPTS[:2], weights_seed=3, max_new_tokens=NEW)
    assert first.finish == ["stop", "stop"]
    assert first.tokens[0] == want[0][: len(first.tokens[0])]
    on = generate(clusters[1], config, PROMPTS[:2], weights_seed=3, max_new_tokens=NEW, stop_tokens=())
    assert on.tokens == want[:2]


def test_a_config_that_names_no_dtype_is_run_in_that_of_its_tensors(
    judge: Judge, clusters: Any, tmp_path: Path
) -> None:
    config = ModelConfig.from_hf(judge.keys("llama"))
    save_checkpoint(tmp_path, config, RandomWeights(config, 3), dtype="bfloat16")
    named = generate(clusters[2], tmp_path, PROMPTS, max_new_tokens=NEW)
    keys = json.loads((tmp_path / "config.json").read_text())
    assert keys.pop("torch_dtype") == "bfloat16"
    (tmp_path / "config.json").write_text(json.dumps(keys))
    got = generate(clusters[2], tmp_path, PROMPTS, max_new_tokens=NEW)
    assert got.tokens == named.tokens
    in_bfloat16 = [weight_bytes(config.in_dtype("bfloat16"), got.layout, 0, index) for index in range(2)]
    assert [load.weight_bytes for load in got.loads] == in_bfloat16


def test_one_new_token_of_one_token_prompts(judge: Judge, clusters: Any) -> None:
    want, _ = judge.greedy("llama")
    for tp, pp in LAYOUTS:
        got = generate(clusters[tp * pp], judge.checkpoint("llama"), [PROMPTS[3]], tp=tp, pp=pp, max_new_tokens=1)
        assert got.tokens == [want[3][:1]]
        assert got.tpot_s == [0.0]
        assert got.decode_tokens_per_s == 0.0


def test_prefill_by_other_strategies(judge: Judge, clusters: Any) -> None:
    from tplab.layers.strategies import BatchSplit, Chunked, SequenceParallel

    want, _ = judge.greedy("llama")
    for strategy in (Chunked(3), BatchSplit(2), SequenceParallel()):
        for tp, pp in ((2, 1), (2, 2)):
            got = generate(
                clusters[tp * pp],
                judge.checkpoint("llama"),
                PROMPTS,
                tp=tp,
                pp=pp,
                max_new_tokens=NEW,
                strategy=strategy,
            )
            assert got.tokens == want, strategy


def test_tokens_stream_in_order(judge: Judge, clusters: Any) -> None:
    want, _ = judge.greedy("qwen2")
    for tp, pp in LAYOUTS:
        heard: list[tuple[int, int]] = []
        phases: list[str] = []
        run = submit_generate(
            clusters[tp * pp], judge.checkpoint("qwen2"), PROMPTS, tp=tp, pp=pp, max_new_tokens=NEW,
            on_token=lambda sequence, token, heard=heard: heard.append((sequence, token)),
            on_report=lambda report, phases=phases: phases.append(report.fields["phase"]),
        )  # fmt: skip
        assert run.result().tokens == want == run.tokens
        for sequence, tokens in enumerate(want):
            assert [token for place, token in heard if place == sequence] == tokens
        assert set(phases) >= {"generate"}
        last = [report.fields for report in run.run.reports if report.fields["phase"] == "generate"][-1]
        assert last["done"] == last["total"] == NEW * len(PROMPTS)


def test_a_generation_can_be_stopped(judge: Judge, clusters: Any) -> None:
    config = ModelConfig.from_hf(judge.keys("llama") | {"max_position_embeddings": 100_000})
    run = submit_generate(clusters[2], config, PROMPTS, max_new_tokens=50_000, on_token=lambda *_: run.stop())
    with pytest.raises(RunStopped):
        run.result()
    assert run.tokens[0]
    want, _ = judge.greedy("llama")
    assert generate(clusters[2], judge.checkpoint("llama"), PROMPTS, max_new_tokens=NEW).tokens == want


def test_times_and_shares_add_up(judge: Judge, clusters: Any) -> None:
    for tp, pp in LAYOUTS:
        got = generate(clusters[tp * pp], judge.checkpoint("llama"), PROMPTS, tp=tp, pp=pp, max_new_tokens=NEW)
        assert 0 < min(got.ttft_s) <= max(got.ttft_s) < got.total_s
        longest = max(
            first + each * (len(tokens) - 1)
            for first, each, tokens in zip(got.ttft_s, got.tpot_s, got.tokens, strict=True)
        )
        assert longest == pytest.approx(got.total_s)
        assert got.output_tokens_per_s * got.total_s == pytest.approx(NEW * len(PROMPTS))
        for rank, share in enumerate(got.shares()):
            assert all(part >= 0 for part in share.values())
            assert sum(share.values()) <= 1.05
            assert (share["collective"] > 0) == (tp > 1), rank
            assert (share["wait"] > 0) == (pp > 1), rank
        assert (got.communication_share > 0) == (tp * pp > 1)
        frame = got.frame()
        assert (frame["tp"][0], frame["pp"][0], frame["new_tokens"][0]) == (tp, pp, NEW * len(PROMPTS))
        assert list(got.memory_frame()["stage"]) == [rank // tp for rank in range(tp * pp)]


def test_the_trace_is_a_decode_ring(judge: Judge, clusters: Any) -> None:
    got = generate(clusters[4], judge.checkpoint("llama"), PROMPTS, tp=1, pp=4, max_new_tokens=NEW, num_micro_batches=5)
    trace = got.trace()
    assert trace.num_ranks == 4
    assert trace.measured
    assert trace.schedule.num_micro_batches == NEW * 5
    assert trace.kinds().count("forward") == 4 * 5
    assert trace.kinds().count("decode") == 4 * 5 * (NEW - 1)
    ends = {(span.stage, span.micro_batch): span.end_s for span in trace.spans}
    for span in trace.spans:
        if span.stage:
            assert ends[span.stage - 1, span.micro_batch] <= span.start_s, "a stage starts after the one before"
        came_from = trace.schedule.micro_batches[span.micro_batch].token_from
        if came_from is not None and span.stage == 0:
            assert ends[3, came_from] <= span.start_s, "a step starts after its token"
    assert 0 < trace.idle_over_total < 1
