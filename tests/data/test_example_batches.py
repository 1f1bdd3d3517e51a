"""Batches of examples: each example once an epoch, each batch a function of its step, little padding, few shapes."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from lm.data.example_batches import EvaluationExampleBatches, TrainExampleBatches, bucketed, grouped
from lm.errors import UserError

AXES = {"source": "S", "target": "T", "weights": "T"}
PADDING = {"source": 9}
BUCKETS = (4, 8, 16)


def make_examples(count=150, longest=20):
    random = np.random.default_rng(0)
    lengths = random.integers(1, longest, size=(count, 2))
    return [
        {
            "source": np.full(source, 100 + i, np.int32),
            "target": np.full(target, 1000 + i, np.int32),
            "weights": np.ones(target, np.float32),
            "label": np.array(i, np.int32),
        }
        for i, (source, target) in enumerate(lengths)
    ]


EXAMPLES = make_examples()


def make_train(examples=EXAMPLES, batch_size=8, seed=0, **values):
    return TrainExampleBatches(examples, AXES, PADDING, batch_size, seed, BUCKETS, **values)


def epoch(batches, number=0):
    first = number * batches.steps_per_epoch
    return [batches[step] for step in range(first, first + batches.steps_per_epoch)]


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
        assert one[name].dtype == other[name].dtype


@pytest.mark.parametrize("number", [0, 1, 5])
def test_every_example_comes_once_an_epoch(number):
    index = np.concatenate([batch["index"] for batch in epoch(make_train(), number)])
    assert sorted(index[index >= 0]) == list(range(len(EXAMPLES)))


def test_every_example_is_evaluated_once():
    batches = EvaluationExampleBatches(EXAMPLES, AXES, PADDING, 8, BUCKETS)
    index = np.concatenate([batch["index"] for batch in batches])
    assert sorted(index[index >= 0]) == list(range(len(EXAMPLES)))
    with pytest.raises(IndexError):
        batches[len(batches)]


def test_a_batch_is_a_function_of_its_step():
    steps = [70, 3, 0, 41, 3, 25]
    straight = make_train()
    in_order = {step: straight[step] for step in range(71)}
    fresh = make_train()
    for step in steps:
        assert_equal(fresh[step], in_order[step])


def test_seeds_and_epochs_draw_other_companies():
    def companies(batches, number=0):
        return {frozenset(batch["index"].tolist()) for batch in epoch(batches, number)}

    first = companies(make_train())
    assert len(first & companies(make_train(), 1)) < len(first) / 2
    assert len(first & companies(make_train(seed=1))) < len(first) / 2


def test_short_and_long_batches_come_mixed():
    batches = make_train()
    shapes = [(batch["source"].shape, batch["target"].shape) for batch in epoch(batches)]
    changes = sum(one != other for one, other in pairwise(shapes))
    assert changes > len(batches.shapes)


def test_rows_hold_their_examples_and_padding():
    for batch in epoch(make_train()):
        for row, i in enumerate(batch["index"]):
            example = EXAMPLES[i] if i >= 0 else {"label": 0}
            assert batch["row_weights"][row] == (i >= 0)
            assert batch["label"][row] == example["label"]
            for name in AXES:
                values = example.get(name, ())
                np.testing.assert_array_equal(batch[name][row, : len(values)], values)
                assert np.all(batch[name][row, len(values) :] == PADDING.get(name, 0))


def test_arrays_of_one_axis_have_one_length_and_types_stay():
    batch = make_train()[0]
    assert batch["target"].shape == batch["weights"].shape
    types = {name: values.dtype for name, values in batch.items()}
    assert types == {
        "source": np.int32,
        "target": np.int32,
        "weights": np.float32,
        "label": np.int32,
        "row_weights": np.float32,
        "index": np.int32,
    }


@pytest.mark.parametrize("hosts", [2, 4])
@pytest.mark.parametrize(
    "make", [make_train, lambda **v: EvaluationExampleBatches(EXAMPLES, AXES, PADDING, 8, BUCKETS, **v)]
)
def test_shares_of_hosts_tile_the_global_batch(make, hosts):
    whole = make()
    shares = [make(host=host, hosts=hosts) for host in range(hosts)]
    for step in (0, 7, 19):
        parts = [share[step] for share in shares]
        assert_equal({name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, whole[step])


def test_shapes_are_buckets_and_those_announced():
    batches = make_train()
    seen = {(batch["source"].shape[1], batch["target"].shape[1]) for batch in epoch(batches)}
    assert seen == {(shape["S"], shape["T"]) for shape in batches.shapes}
    assert all(length in (4, 8, 16, 32) for shape in seen for length in shape)


@pytest.mark.parametrize(("length", "bucket"), [(0, 4), (1, 4), (4, 4), (5, 8), (16, 16), (17, 32), (32, 32), (33, 48)])
def test_bucketed(length, bucket):
    assert bucketed(length, BUCKETS) == bucket


def test_a_group_smaller_than_a_batch_joins_the_next_longer():
    shapes = [(4,)] * 3 + [(8,)] * 2 + [(16,)] * 9 + [(32,)] * 2
    groups = grouped(shapes, 4)
    assert {shape: len(members) for shape, members in groups.items()} == {(8,): 5, (16,): 9, (32,): 2}
    assert sorted(np.concatenate(list(groups.values()))) == list(range(len(shapes)))


def test_groups_join_only_what_is_as_long_on_every_axis():
    groups = grouped([(4, 16)] + [(16, 8)] * 5 + [(16, 16)] * 5, 4)
    assert {shape: list(members) for shape, members in groups.items()} == {
        (16, 8): [1, 2, 3, 4, 5],
        (16, 16): [0, 6, 7, 8, 9, 10],
    }


def test_only_the_last_batch_of_a_group_is_filled():
    batches = make_train()
    filled = Counter(
        (batch["source"].shape, batch["target"].shape) for batch in epoch(batches) if not batch["row_weights"].all()
    )
    assert max(filled.values()) == 1
    assert all(batch["row_weights"].any() for batch in epoch(batches))


@pytest.mark.parametrize("count", [1, 5, 150])
def test_padding_share_is_what_batches_hold(count):
    batches = make_train(EXAMPLES[:count])
    cells = sum(batch[name].size for batch in epoch(batches) for name in ("source", "target"))
    real = sum(len(example[name]) for example in EXAMPLES[:count] for name in ("source", "target"))
    assert batches.tokens_per_epoch == real
    assert batches.padding_share == pytest.approx(1 - real / cells)


def test_bad_values_are_named():
    with pytest.raises(UserError, match=r"batch_size=8 must be divisible by the number of hosts, 3"):
        make_train(hosts=3)
    with pytest.raises(UserError, match="there are no examples"):
        make_train([])
