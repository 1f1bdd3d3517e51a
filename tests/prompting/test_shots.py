"""Shots: drawn by seed, balanced where asked, fewer a subset of more, in the order that is asked for."""

import collections
import itertools

import pytest

from lm.errors import UserError
from lm.prompting.config import ORDERS, PromptConfig
from lm.prompting.shots import choose_shots

CLASSES = ("a", "b", "c")
ROWS = [{"text": str(number), "label": CLASSES[min(number % 7, 2)]} for number in range(40)]


def chosen(seed=0, **how):
    return choose_shots(ROWS, CLASSES, PromptConfig(**how), seed)


@pytest.mark.parametrize("seed", range(4))
def test_balanced_shots_have_each_class_as_often(seed):
    for count in range(10):
        labels = collections.Counter(row["label"] for row in chosen(shots=count, seed=seed))
        assert max(labels.values(), default=0) - min((labels[name] for name in CLASSES), default=0) <= 1


def test_a_single_shot_is_not_always_of_the_same_class():
    assert len({chosen(shots=1, seed=seed)[0]["label"] for seed in range(20)}) == 3


@pytest.mark.parametrize("balanced", [True, False])
def test_fewer_shots_are_a_subset_of_more(balanced):
    for few, more in itertools.pairwise(range(12)):
        texts = [{row["text"] for row in chosen(shots=count, balanced=balanced)} for count in (few, more)]
        assert texts[0] < texts[1]


def test_orders_differ_in_order_alone():
    drawn = {order: chosen(shots=6, order=order) for order in ORDERS}
    assert len({frozenset(row["text"] for row in rows) for rows in drawn.values()}) == 1
    assert [row["label"] for row in drawn["by_class"]] == sorted(row["label"] for row in drawn["by_class"])
    assert chosen(shots=6, order_seed=1) != chosen(shots=6, order_seed=2)
    assert chosen(shots=6, order="as_drawn", order_seed=1) == chosen(shots=6, order="as_drawn", order_seed=2)


def test_unbalanced_shots_follow_the_rows():
    labels = collections.Counter(row["label"] for row in chosen(shots=40, balanced=False))
    assert labels == collections.Counter(row["label"] for row in ROWS)


def test_more_shots_than_rows_are_refused():
    with pytest.raises(UserError, match="there are 40 training rows"):
        chosen(shots=41)
