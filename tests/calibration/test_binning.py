"""Bins: where edges belong, sums that are the same bits however items are spread, and totals."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from lm.calibration import binning as module
from lm.calibration.binning import Binning, BinSums, bin_totals, equal_mass, near_edges, update

N = 96
RANDOM = np.random.default_rng(0)
CONFIDENCE = RANDOM.uniform(size=N).astype(np.float32)
CONFIDENCE[:8] = [0, 1, 0.2, 0.4, 0.6, 0.8, 0.5, 2.0**-24]
CORRECT = RANDOM.choice(np.float32([0, 1, 1 / 2, 1 / 3]), size=N)
FIVE = Binning(5)
added = jax.jit(update, static_argnames="binning")


def in_bins(confidence_N, correct_N, binning):
    """Count, correct and confidence of each bin by a loop, in float64."""
    totals = np.zeros((3, binning.bins))
    edges = np.float32(binning.all_edges())
    for c, y in zip(np.float32(confidence_N), correct_N, strict=True):
        b = next(b for b in range(binning.bins) if c <= edges[b + 1])
        totals[:, b] += 1, y, c
    return totals


def assert_same_bits(found: BinSums, expected: BinSums):
    for name, one, other in zip(BinSums._fields, found, expected, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=name)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_edges_belong_to_the_bin_below_and_0_to_the_first(dtype):
    edges = dtype([0, 0.2, 0.4, 0.6, 0.8, 1])
    if dtype == np.float16:
        edges = dtype([0, 0.125, 0.25, 0.5, 0.75, 1])
        assert FIVE.index(edges).tolist() == [0, 0, 1, 2, 3, 4]
    else:
        assert FIVE.index(edges).tolist() == [0, 0, 1, 2, 3, 4]
        assert FIVE.index(np.nextafter(np.float32(edges), np.float32(2))[:-1]).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("bins", [1, 2, 5, 10, 15, 20])
def test_votes_on_edges_are_in_the_bin_that_ends_there(bins):
    votes = np.float32(np.arange(bins + 1) / bins)
    assert Binning(bins).index(votes).tolist() == [0, *range(bins)]


def test_edges_given_mean_the_same_as_equal_widths():
    edged = Binning(5, tuple(np.linspace(0, 1, 6)))
    np.testing.assert_array_equal(edged.index(CONFIDENCE), FIVE.index(CONFIDENCE))
    np.testing.assert_allclose(edged.all_edges(), FIVE.all_edges())


@pytest.mark.parametrize("arguments", [(0,), (2, (0.0, 1.0)), (2, (0.0, 0.5, 0.5)), (2, (0.0, 0.7, 0.5))])
def test_edges_must_rise(arguments):
    with pytest.raises(ValueError):
        Binning(*arguments)


def test_totals_equal_a_loop():
    totals = bin_totals(CONFIDENCE, CORRECT, FIVE)
    np.testing.assert_array_equal(totals.count, in_bins(CONFIDENCE, CORRECT, FIVE)[0])
    # Each value is kept to 2^-25.
    np.testing.assert_allclose(totals[1:], in_bins(CONFIDENCE, CORRECT, FIVE)[1:], rtol=0, atol=N * 2.0**-25)


def test_confidences_between_a_half_and_one_are_summed_without_any_error():
    confidence = RANDOM.uniform(0.5, 1, size=4000).astype(np.float32)
    totals = bin_totals(confidence, np.ones(4000), Binning(1))
    assert totals.confidence[0] == confidence.astype(np.float64).sum()
    assert totals.correct[0] == totals.count[0] == 4000


# --- the same bits ---

EXPECTED = added(BinSums.init(FIVE), CONFIDENCE, CORRECT, FIVE)


def test_order_and_batches_change_no_bit():
    order = RANDOM.permutation(N)
    assert_same_bits(added(BinSums.init(FIVE), CONFIDENCE[order], CORRECT[order], FIVE), EXPECTED)
    in_batches = BinSums.init(FIVE)
    for part in np.split(np.arange(N), 4):
        in_batches = added(in_batches, CONFIDENCE[part], CORRECT[part], FIVE)
    assert_same_bits(in_batches, EXPECTED)
    parts = [added(BinSums.init(FIVE), CONFIDENCE[part], CORRECT[part], FIVE) for part in np.split(np.arange(N), 4)]
    assert_same_bits(functools.reduce(BinSums.merge, parts), EXPECTED)
    assert_same_bits(functools.reduce(BinSums.merge, reversed(parts)), EXPECTED)
    assert_same_bits(BinSums.sum_of(jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)), EXPECTED)


def test_psum_over_eight_devices_changes_no_bit():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def on_each(confidence_N, correct_N):
        sums = update(BinSums.init(FIVE), confidence_N, correct_N, FIVE)
        return BinSums(*jax.lax.psum(tuple(sums), "data")).carried()

    spread = jax.shard_map(
        on_each, mesh=mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec(), check_vma=False
    )
    assert_same_bits(jax.jit(spread)(CONFIDENCE, CORRECT), EXPECTED)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_items_are_summed_like_their_float32_values(dtype):
    confidence, correct = (jnp.asarray(values, jnp.dtype(dtype)) for values in (CONFIDENCE, CORRECT))
    expected = added(BinSums.init(FIVE), np.asarray(confidence, np.float32), np.asarray(correct, np.float32), FIVE)
    assert_same_bits(added(BinSums.init(FIVE), confidence, correct, FIVE), expected)


def test_long_inputs_are_summed_in_parts(monkeypatch):
    """Batches large enough to overflow an int32 sum of 12-bit digits are processed in parts."""
    assert module._ITEMS_PER_UPDATE * 2**12 < 2**31
    monkeypatch.setattr(module, "_ITEMS_PER_UPDATE", 40)
    mask, bucket = RANDOM.random(N) < 0.8, RANDOM.integers(2, size=N)
    found = jax.jit(functools.partial(update, binning=FIVE))(
        BinSums.init(FIVE, (2,)), CONFIDENCE, CORRECT, mask_N=mask, bucket_N=bucket
    )
    monkeypatch.undo()
    expected = added(BinSums.init(FIVE, (2,)), CONFIDENCE, CORRECT, FIVE, mask_N=mask, bucket_N=bucket)
    assert_same_bits(found, expected)


def test_counters_go_on_past_what_float32_can_count():
    """3 * 2^24 items of confidence 1, of which a third are right: 2^24 + 1 is not a float32."""
    many = 3 * 2**24
    full = BinSums(
        count=jnp.array([0, many], jnp.int32),
        correct=jnp.array([[0, 0, 0], [2**24, 0, 0]], jnp.int32),
        confidence=jnp.array([[0, 0, 0], [many, 0, 0]], jnp.int32),
        invalid=jnp.int32(0),
    )
    one_more = added(full, np.float32([1, 0.75, 0.25]), np.float32([1, 0.5, 1]), Binning(2)).totals()
    assert one_more.count.tolist() == [1, many + 2]
    assert one_more.correct.tolist() == [1, 2**24 + 1.5]
    assert one_more.confidence.tolist() == [0.25, many + 1.75]
    doubled = full.merge(full).totals()
    assert (doubled.count[1], doubled.correct[1], doubled.confidence[1]) == (2 * many, 2**25, 2 * many)


def test_digits_never_leave_their_range():
    sums = EXPECTED
    for _ in range(16):
        sums = sums.merge(sums)
    for limbs in (sums.correct, sums.confidence):
        assert ((np.asarray(limbs)[..., 1:] >= 0) & (np.asarray(limbs)[..., 1:] < 2**12)).all()
    np.testing.assert_array_equal(sums.totals(), 2.0**16 * np.array(EXPECTED.totals()))


# --- mask, buckets, NaN ---


@pytest.mark.parametrize("bins", [5, 40])  # 40 bins of 3 buckets are scattered, not compared
def test_mask_and_buckets_part_items(bins):
    binning = Binning(bins)
    mask, bucket = RANDOM.random(N) < 0.7, RANDOM.integers(3, size=N)
    anything = np.where(np.arange(N) % 2, np.nan, CONFIDENCE)  # as padding may hold
    confidence = np.where(mask, CONFIDENCE, anything).astype(np.float32)
    found = added(BinSums.init(binning, (3,)), confidence, CORRECT, binning, mask_N=mask, bucket_N=bucket)
    for b in range(3):
        part = mask & (bucket == b)
        expected = added(BinSums.init(binning), CONFIDENCE[part], CORRECT[part], binning)
        assert_same_bits(jax.tree.map(lambda values, b=b: values[b], found), expected)


@pytest.mark.parametrize("bins", [5, 40])
def test_items_of_a_bucket_that_is_none_are_dropped(bins):
    bucket = np.where(np.arange(N) % 3 == 0, -1, np.where(np.arange(N) % 3 == 1, 2, 1))
    found = added(BinSums.init(Binning(bins), (2,)), CONFIDENCE, CORRECT, Binning(bins), bucket_N=bucket)
    assert found.count.sum(axis=-1).tolist() == [0, N / 3]


@pytest.mark.parametrize("which", ["confidence", "correct"])
def test_nan_is_never_hidden(which):
    given = {"confidence": CONFIDENCE.copy(), "correct": CORRECT.copy()}
    given[which][9] = np.nan
    bucket = np.arange(N) % 2  # item 9 is in bucket 1
    found = added(BinSums.init(FIVE, (2,)), given["confidence"], given["correct"], FIVE, bucket_N=bucket)
    assert found.invalid.tolist() == [0, 1]
    totals = found.merge(found).totals()
    assert np.isfinite(totals).all(axis=(0, 2)).tolist() == [True, False]
    assert np.isnan(np.array(totals)[:, 1]).all()


# --- equal mass ---


def test_equal_mass_bins_hold_equally_many():
    binning = equal_mass(CONFIDENCE, 12)
    assert binning.bins == 12
    assert bin_totals(CONFIDENCE, CORRECT, binning).count.tolist() == [8] * 12
    uneven = bin_totals(CONFIDENCE, CORRECT, equal_mass(CONFIDENCE, 7)).count
    assert set(uneven.tolist()) <= {N // 7, N // 7 + 1}


@pytest.mark.parametrize(
    "values",
    [[0.3], [0.0, 1.0], [0.5, 0.5, 0.5, 1.0], [0.0, 0.0, 0.0, 0.2], [0.1, 0.9, 0.9, 0.9], [1.0] * 5, [0.0] * 5],
)
def test_equal_confidences_share_a_bin(values):
    for bins, repeat in itertools.product((1, 2, 4, 15), (1, 7)):
        confidence = np.repeat(np.float32(values), repeat)
        binning = equal_mass(confidence, bins)
        totals = bin_totals(confidence, confidence, binning)
        assert binning.bins <= min(bins, np.unique(values).size)
        assert totals.count.sum() == confidence.size
        assert (totals.count > 0).all(), "an empty bin"
        np.testing.assert_array_equal(totals.correct, totals.confidence)


def test_equal_mass_needs_confidences():
    with pytest.raises(ValueError, match="confidence is empty"):
        equal_mass(np.array([]), 5)


def test_the_share_near_edges_counts_votes():
    assert near_edges(np.float32([0.2, 0.4, 0.8, 0.5, 0.55]), FIVE) == pytest.approx(0.6)
    assert near_edges(np.float32([0, 1, 0.3]), FIVE) == 0  # the ends are not inner edges
    assert near_edges(np.float32([0.5]), Binning(1)) == 0
    assert near_edges(CONFIDENCE[8:], FIVE) == 0
