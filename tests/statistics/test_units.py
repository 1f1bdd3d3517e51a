"""Metrics as text: shares in percent, all else as it is."""

import math

import pytest

from lm.statistics.directions import BETTER
from lm.statistics.units import is_share, shown, shown_change


def test_every_metric_with_a_direction_has_its_unit():
    others = {"loss", "perplexity", "bits_per_byte", "next_sentence_loss", "matthews", "bleu", "chrf"}
    assert {name for name in BETTER if not is_share(name)} == others


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("accuracy", 0.5, "50.00%"),
        ("f1/animal", 0.98765, "98.77%"),
        ("f1_macro", 1.0, "100.00%"),
        ("ece_floor", 0.0123, "1.23%"),
        ("bleu", 24.3, "24.3000"),
        ("loss", 0.6931, "0.6931"),
        ("accuracy", math.nan, "-"),
    ],
)
def test_a_value_has_its_unit(name, value, text):
    assert shown(name, value) == text


def test_changes_of_shares_are_in_percentage_points():
    assert shown_change("accuracy", 0.0371) == "+3.71 pp"
    assert shown_change("loss", -0.0186) == "-0.0186"
    assert shown_change("ece", math.nan) == "-"
