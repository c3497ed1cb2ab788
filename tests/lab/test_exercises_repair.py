"""The checker of 08-repair: the notebook's decoder with each subset of its bugs, and other wrong answers."""

import json
import random
import re
import sys
import types
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import torch

from tplab.checks import ArgumentError
from tplab.cluster import Cluster
from tplab.lab.exercises import check_repair
from tplab.models.small_decoder import HEAD_DIM, VOCAB, Model, Probe, shard_of

pytestmark = pytest.mark.timeout(120)

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "08-capstone.ipynb"
REPAIRS = {
    "positions": ("width = hidden // heads", "width = d"),
    "cache": ("filled.get(i, 0)", "filled.get(layer.number, 0)"),
    "vocabulary": ("place.double()", "(place + part.vocab_start).double()"),
}
SAYS = {
    "vocabulary": "after a prompt of one token the next is right where the first rank of a group holds it",
    "positions": "after a prompt of 9 tokens the next is wrong",
    "cache": "the one after the prompt is right. Look at what a stage remembers",
}


@pytest.fixture(scope="module")
def stub() -> str:
    """Source of the notebook's stub cell."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    (cell,) = (c for c in cells if c["metadata"].get("tplab") == {"exercise": "08-repair", "part": "stub"})
    return "".join(cell["source"])


@pytest.fixture(autouse=True)
def drawn_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same models each time: which words a wrong answer gets depends on the tokens that happen to be likely."""
    monkeypatch.setattr("tplab.lab.exercises.trial.secrets.randbits", random.Random(1).getrandbits)


@pytest.fixture
def decoder(stub: str) -> Iterator[Any]:
    """``decoder((old, new), ...)``: the stub's function with these changes."""
    cell = types.ModuleType("stub_cell")
    sys.modules[cell.__name__] = cell
    cloudpickle.register_pickle_by_value(cell)

    def make(*changes: tuple[str, str]) -> Any:
        source = stub
        for old, new in changes:
            assert source.count(old) == 1, old
            source = source.replace(old, new)
        exec(compile(source, "<cell>", "exec"), cell.__dict__)
        return cell.__dict__["my_decoder"]

    yield make
    cloudpickle.unregister_pickle_by_value(cell)
    del sys.modules[cell.__name__]


SUBSETS = [set(repaired) for count in range(4) for repaired in combinations(REPAIRS, count)]


@pytest.mark.parametrize("repaired", SUBSETS, ids=lambda each: " ".join(sorted(each)) or "none")
def test_only_all_three_repairs_pass_and_each_other_one_is_seen(
    cluster2: Cluster, decoder: Any, repaired: set[str]
) -> None:
    verdict = check_repair(cluster2, decoder(*(REPAIRS[name] for name in sorted(repaired))))
    assert verdict.passed == (len(repaired) == 3), verdict.message
    for name, words in SAYS.items():
        assert (words in verdict.message) == (name not in repaired), verdict.message


def test_on_four_ranks_every_layout_is_tried_and_tokens_may_come_in_any_form(clusters: Any, decoder: Any) -> None:
    in_forms = "import numpy; return {1: torch.tensor, 6: tuple, 9: numpy.array}[len(prompt)](made)"
    verdict = check_repair(clusters[4], decoder(*REPAIRS.values(), ("return made", in_forms)))
    assert verdict.passed, verdict.message
    assert "on TP 1 × PP 4, TP 2 × PP 2, TP 4 × PP 1" in verdict.message
    verdict = check_repair(clusters[4], decoder())
    assert all(words in verdict.message for words in SAYS.values()), verdict.message


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("every[:, 0].argmax()", "len(every) - 1 - every[:, 0].flip(0).argmax()"),
         "of two equally likely tokens the lower one must be taken"),
        (("place + part.vocab_start", "place + 2 * part.vocab_start"), "expected .* how a rank names the token"),
        (("part.all_reduce(y @ layer.o.T)", "y @ layer.o.T"), "TP 2 × PP 1, after a prompt of one token: expected"),
        (("x = part.embedding[ids]", "x = 0 * part.embedding[ids]"), "PP 2, after a prompt of one token: expected"),
        (("triu(T - S + 1)", "triu(T - S + 2)"), "TP 1 × PP 2, after a prompt of 9 tokens: expected token"),
        (("ids = [token]", "ids = prompt[-1:]"), r"after a prompt of 6 tokens new token \d of 8 is the first"),
        (("return made", "return made if part.is_last else None"), "rank 0 returned None"),
        (("return made", "return made[:-1]"), r"as a list of ids; rank 0 returned \[\] "),
        (("return made", "return [0.5 * t for t in made]"), "every rank must return the"),
        (("return made", "return made if rank == 0 else [t + 1 for t in made]"), "the ranks do not agree"),
        (("token = None", "token = ids[1]"), r"line \d+ of my_decoder: IndexError"),
    ],
)  # fmt: skip
def test_other_wrong_answers(cluster2: Cluster, decoder: Any, change: tuple[str, str], says: str) -> None:
    verdict = check_repair(cluster2, decoder(*REPAIRS.values(), change))
    assert not verdict.passed
    assert re.search(says, verdict.message), verdict.message


def test_an_empty_answer_is_met_politely(cluster2: Cluster) -> None:
    verdict = check_repair(cluster2, lambda rank, part, prompt, new_tokens: None)
    assert "every rank must return the 1 new tokens as a list of ids; rank 0 returned None" in verdict.message


def test_three_ranks_are_refused(cluster3: Cluster) -> None:
    with pytest.raises(ArgumentError, match="must have 2 or 4 ranks"):
        check_repair(cluster3, lambda *given: [])


def test_the_reference_is_another_implementations(cluster2: Cluster) -> None:
    """Logits of transformers' Llama with these weights."""
    transformers = pytest.importorskip("transformers")
    model = Model.drawn(torch.Generator().manual_seed(5))
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        rope_theta=10_000.0, tie_word_embeddings=False, rms_norm_eps=torch.finfo(torch.float64).eps,
    )  # fmt: skip
    theirs = transformers.LlamaForCausalLM(config).double()
    with torch.no_grad():
        theirs.model.embed_tokens.weight.copy_(model.embedding)
        theirs.lm_head.weight.copy_(model.head)
        for ours, layer in zip(model.layers, theirs.model.layers, strict=True):
            for name in "qkvo":
                getattr(layer.self_attn, f"{name}_proj").weight.copy_(getattr(ours, name))
            for name in ("gate", "up", "down"):
                getattr(layer.mlp, f"{name}_proj").weight.copy_(getattr(ours, name))
        ids = [3, 66, 0, 17, 17, 41]
        want = theirs(torch.tensor([ids])).logits[0]
    assert torch.allclose(model.logits(ids), want, atol=1e-5)  # its angles are float32


def test_probes_show_what_they_are_for() -> None:
    for seed in range(20):
        for tp in (1, 2, 4):
            for shard in range(tp):
                model, prompt, new_tokens = Probe(kind="one token", number=shard, tp=tp).drawn(seed)
                (token,), margin = model.greedy(prompt, new_tokens)
                assert (len(prompt), shard_of(token, tp)[0]) == (1, shard)
                assert margin > 1e-7
        model, prompt, _ = Probe(kind="long prompt", number=0, tp=2).drawn(seed)
        assert model.logits(prompt)[-1].argmax() != model.logits(prompt, width=2 * HEAD_DIM)[-1].argmax()
        model, prompt, _ = Probe(kind="ties", number=0, tp=2).drawn(seed)
        two = model.logits(prompt)[-1].topk(2)
        assert two.values[0] == two.values[1]
        assert two.indices.diff().abs() == 34


def test_the_stub_is_short(stub: str) -> None:
    assert len(stub.splitlines()) < 70
