"""The operations that damage is made of, against their definitions."""

import numpy as np
import pytest

from lm.errors import UserError
from lm.objectives.corruption import (
    CorruptedBatches,
    RowRandom,
    chosen_units,
    compacted,
    joined_units,
    positions_in_segments,
    units_of,
)

B, T = 40, 30


def random_rows(seed=0, batch=B):
    return RowRandom((seed, 7), batch, slice(0, batch))


@pytest.fixture(scope="module")
def units():
    """Units of one to a few tokens, and some tokens that may not be chosen, each a unit of its own."""
    random = np.random.default_rng(1)
    allowed = random.random((B, T)) < 0.9
    return units_of(random.random((B, T)) < 0.4, allowed, np.ones((B, T), int)), allowed


def test_rows_have_the_same_numbers_on_any_number_of_hosts():
    def draw(rows):
        random = RowRandom((3, 1, 5), 8, rows)
        return random.uniform(4), random.integers(9, 3), random.drawn_from(np.ones(5), 6)

    whole, parts = draw(slice(0, 8)), [draw(slice(i, i + 2)) for i in range(0, 8, 2)]
    for i, values in enumerate(whole):
        np.testing.assert_array_equal(np.concatenate([part[i] for part in parts]), values)


def test_draws_have_the_probabilities_asked_for():
    random, count = random_rows(), B * 2000
    drawn = random.drawn_from(np.array([1.0, 0.0, 2.0, 5.0]), 2000)
    share = np.bincount(drawn.ravel(), minlength=4) / count
    expected = np.array([1, 0, 2, 5]) / 8
    assert np.all(np.abs(share - expected) <= 5 * np.sqrt(expected * (1 - expected) / count))
    below = np.arange(1, B + 1)[:, None]
    whole = random.integers(below, 2000)
    assert whole.min() == 0
    np.testing.assert_array_equal(whole.max(axis=1), below[:, 0] - 1)


def test_units_end_at_borders():
    begins = np.array([[0, 0, 1, 0, 0, 0, 0, 1]], bool)
    allowed = np.array([[1, 1, 1, 1, 0, 1, 1, 1]], bool)
    segments = np.array([[1, 1, 1, 2, 2, 2, 2, 2]])
    np.testing.assert_array_equal(units_of(begins, allowed, segments), [[0, 0, 1, 2, 3, 4, 4, 5]])
    assert not begins[0, 0], "the argument was changed"


def test_joined_units_have_the_given_lengths():
    units = np.array([[0, 0, 1, 2, 2, 3, 4], [0, 1, 2, 3, 4, 5, 6]])
    lengths = np.array([[2, 1, 9, 9, 9, 9, 9], [1, 3, 2, 1, 1, 1, 1]])
    np.testing.assert_array_equal(
        joined_units(units, lengths).astype(int), [[1, 0, 0, 1, 0, 1, 0], [1, 1, 0, 0, 1, 0, 1]]
    )


def test_choosing_equals_going_through_the_units_one_by_one(units):
    units, allowed = units
    budget = np.arange(B) % 12
    chosen = chosen_units(units, allowed, budget, random_rows())
    order = np.argsort(random_rows().uniform(T), axis=1)  # the same draw
    for row in range(B):
        expected, left = set(), budget[row]
        for unit in order[row]:
            size = (allowed[row] & (units[row] == unit)).sum()
            if 0 < size <= left:
                expected.add(unit)
                left -= size
        np.testing.assert_array_equal(chosen[row], allowed[row] & np.isin(units[row], list(expected)))


def test_every_unit_is_as_likely():
    units = np.broadcast_to(np.arange(12) // 3, (4000, 12))
    chosen = chosen_units(units, np.ones((4000, 12), bool), np.full(4000, 3), random_rows(batch=4000))
    assert np.all(np.abs(chosen.mean(axis=0) - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 4000))


def test_compacting_keeps_order_and_pads():
    keep = np.array([[0, 1, 0, 1, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], bool)
    values = np.arange(15).reshape(3, 5)
    result, doubled = compacted(keep, 4, values, 2 * values)
    np.testing.assert_array_equal(result, [[1, 3, 4, 0], [0, 0, 0, 0], [10, 11, 12, 13]])
    np.testing.assert_array_equal(doubled, 2 * result)


def test_positions_count_from_each_segments_start():
    segments = np.array([[1, 1, 1, 2, 2, 0, 0], [1, 2, 3, 3, 3, 3, 3]])
    np.testing.assert_array_equal(positions_in_segments(segments), [[0, 1, 2, 0, 1, 0, 1], [0, 0, 0, 1, 2, 3, 4]])


def test_hosts_must_divide_the_batch():
    with pytest.raises(UserError, match=r"config\.training\.batch_size=8 must be divisible by the number of hosts, 3"):
        CorruptedBatches([], lambda batch, random: batch, 8, (0,), 0, 3)


def test_damage_is_a_function_of_key_and_step():
    def batches(key):
        windows = [{"tokens": np.zeros((4, 3), np.int32)}] * 5
        return CorruptedBatches(windows, lambda batch, random: batch | {"damage": random.uniform(3)}, 4, key)

    batch = batches((1, 2))[3]
    assert batch.keys() == {"tokens", "damage"}
    np.testing.assert_array_equal(batches((1, 2))[3]["damage"], batch["damage"])
    for other in (batches((1, 2))[4], batches((1, 3))[3], batches((0, 2))[3]):
        assert (other["damage"] != batch["damage"]).all()
    assert len(batches((1, 2))) == 5
