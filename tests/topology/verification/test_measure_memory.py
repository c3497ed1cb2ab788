"""Shards really built on ranks hold what the formulas say, byte for byte."""

import pytest

from tplab.cluster import Cluster
from tplab.models.spec import ModelConfig
from tplab.topology import Layout, ModelSpec
from tplab.topology.verification.memory import ShardPlan, measure_shards

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def cluster(cluster2) -> Cluster:
    return cluster2


def model(**changes):
    made = {
        "model_type": "llama",
        "vocab_size": 101,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_layers": 6,
        "num_heads": 12,
        "num_kv_heads": 4,
        "head_dim": 8,
        "max_positions": 64,
        "dtype": "bfloat16",
    }
    return ModelConfig(**made | changes)


MODELS = {
    "grouped": model(),
    "one for all": model(num_kv_heads=1, vocab_size=7),
    "every head its own, fp32": model(num_kv_heads=12, dtype="float32"),
    "biases, tied": model(model_type="qwen2", qkv_bias=True, tied_embeddings=True),
    "norms of heads": model(model_type="qwen3", qk_norm=True, head_dim=6),
    "biases everywhere": model(qkv_bias=True, out_bias=True, mlp_bias=True, num_layers=7),
}
LAYOUTS = [(1, 1), (2, 1), (3, 2), (1, 6), (12, 1), (4, 3)]


def layouts(config, cuts):
    return tuple(Layout.of(config, *cut) for cut in cuts)


@pytest.mark.parametrize("name", MODELS)
def test_six_models_by_six_layouts(cluster, name):
    config = MODELS[name]
    frame = measure_shards(cluster, ShardPlan(config=config, layouts=layouts(config, LAYOUTS), batch=3, context=5))
    assert len(frame) == sum(tp * pp for tp, pp in LAYOUTS)
    assert frame["exact"].all()
    assert (frame["weight_bytes"] > 0).all()
    assert (frame["kv_bytes_per_token"] * 15 == frame["kv_bytes"]).all()
    whole = frame.iloc[0]
    for tp, pp in LAYOUTS:
        together = frame[(frame["tp"] == tp) & (frame["pp"] == pp)]
        assert together["weight_bytes"].sum() >= whole["weight_bytes"]
        assert together["kv_bytes"].sum() >= whole["kv_bytes"]


def test_stages_given_by_hand(cluster):
    config = MODELS["grouped"]
    spec = ModelSpec.from_config(config.to_hf())
    uneven = Layout.of(spec, 1, 2, layers_of_stage=[5, 1])
    frame = measure_shards(cluster, ShardPlan(config=config, layouts=(uneven,)))
    assert frame["exact"].all()
    assert frame["kv_bytes"].tolist() == [5 * frame["kv_bytes"].iloc[1], frame["kv_bytes"].iloc[1]]


def test_places_are_shared_out(cluster):
    config = MODELS["grouped"]
    frame = measure_shards(cluster, ShardPlan(config=config, layouts=layouts(config, [(3, 1)])))
    assert frame["built_on"].tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 0}, "batch must be a whole number of at least 1; got 0"),
        ({"context": -1}, "context must be a whole number of at least 1; got -1"),
        ({"layouts": ()}, "layouts must name at least one"),
        ({"batch": 10_000, "context": 10_000}, "TP 1 × PP 1 needs .* GB on stage 0, and shards are built up to 2 GB"),
    ],
)
def test_plans_that_cannot_be(changes, message):
    config = MODELS["grouped"]
    with pytest.raises(ValueError, match=message):
        ShardPlan(**{"config": config, "layouts": layouts(config, [(1, 1)])} | changes)
