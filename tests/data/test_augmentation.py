"""Damaged text: as much of it as the rates say, of the text's own tokens, and the same for the same draws."""

import numpy as np
import pytest

from lm.data.augmentation import AugmentationConfig, augment
from lm.errors import UserError

NONE = {"replace_rate": 0.0, "insert_rate": 0.0, "delete_rate": 0.0}
# Each token tells its place.
TEXT = np.arange(1000, 21_000)


def augmented(tokens=TEXT, seed=0, **rates):
    return augment(tokens, AugmentationConfig(**NONE | rates), np.random.default_rng(seed))


def test_rates_of_zero_change_nothing():
    np.testing.assert_array_equal(augmented(), TEXT)


def test_replacing_keeps_places():
    changed = augmented(replace_rate=0.2)
    assert changed.shape == TEXT.shape
    assert np.mean(changed != TEXT) == pytest.approx(0.2, abs=0.01)
    assert np.isin(changed, TEXT).all()


def test_deleting_keeps_the_order_of_the_rest():
    changed = augmented(delete_rate=0.3)
    assert len(changed) / len(TEXT) == pytest.approx(0.7, abs=0.01)
    assert (np.diff(changed) > 0).all()


def test_inserting_keeps_the_text():
    changed = augmented(insert_rate=0.1)
    assert len(changed) / len(TEXT) == pytest.approx(1.1, abs=0.01)
    assert np.isin(changed, TEXT).all()
    rest = iter(changed.tolist())
    assert all(token in rest for token in TEXT.tolist()), "the text is a subsequence of what it became"


def test_new_tokens_come_as_often_as_the_text_has_them():
    frequent = np.repeat([7, 8], [9000, 1000])
    added = np.bincount(augmented(frequent, insert_rate=0.5), minlength=9) - np.bincount(frequent, minlength=9)
    assert added[7] / added.sum() == pytest.approx(0.9, abs=0.02)


def test_all_three_act_together():
    changed = augmented(replace_rate=0.1, insert_rate=0.1, delete_rate=0.2)
    assert len(changed) / len(TEXT) == pytest.approx(0.8 * 1.1, abs=0.01)
    assert np.mean(np.isin(TEXT, changed)) < 0.8, "some of the rest was replaced"


def test_no_text_loses_all_its_tokens():
    for seed in range(200):
        assert augmented(np.array([5, 6]), seed, delete_rate=0.95).tolist() in ([5], [6], [5, 6])
    assert augmented(np.array([], np.int32), insert_rate=0.9).size == 0


def test_the_same_draws_make_the_same_damage():
    rates = {"replace_rate": 0.1, "insert_rate": 0.1, "delete_rate": 0.1}
    np.testing.assert_array_equal(augmented(**rates), augmented(**rates))
    assert not np.array_equal(augmented(**rates)[:1000], augmented(seed=1, **rates)[:1000])


@pytest.mark.parametrize("name", NONE)
def test_rates_are_checked_by_name(name):
    for rate in (-0.1, 1.0):
        with pytest.raises(UserError, match=rf"config.augmentation.{name} must be in \[0, 1\), got {rate}"):
            AugmentationConfig(**{name: rate})
