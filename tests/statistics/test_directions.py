"""Directions by name agree with those that the metrics themselves carry."""

import pytest

from lm.calibration.metrics import METRICS
from lm.errors import UserError
from lm.evaluation.classification import classification_metrics
from lm.evaluation.generation import generation_metrics
from lm.evaluation.spans import span_metrics
from lm.evaluation.tagging import entity_metrics
from lm.statistics.directions import BETTER, is_lower_better
from lm.tasks.sequence_to_sequence import nats_per_token, perplexity


def produced():
    """Metrics of every kind of task, by name."""
    outputs = [{"nll": 3.0, "tokens": 2}, {"nll": 1.0, "tokens": 1}]
    return {
        **classification_metrics([0, 1], [0, 0], ("no", "yes")),
        **generation_metrics(["a b c d", "e f g h"], ["a b c e", "e f g h"]),
        **span_metrics(["a", ""], [["a"], []]),
        **entity_metrics([["B-PER", "O"]], [["B-PER", "O"]]),
        "perplexity": perplexity(outputs),
        "loss": nats_per_token(outputs),
    }


def test_metrics_carry_the_direction_of_their_name():
    for name, metric in produced().items():
        assert metric.better == BETTER[name.partition("/")[0]], name
    for column in METRICS:
        if column.name in BETTER:
            assert column.better == BETTER[column.name], column.name


def test_parts_of_a_figure_have_its_direction():
    assert is_lower_better("frequency_1of8/ece", "config.metric")
    assert not is_lower_better("position_0/accuracy", "config.metric")


@pytest.mark.parametrize("name", ["confidence", "frequency_1of8/tokens", "ece_floor", "loss_stderr", "no_such"])
def test_what_only_describes_a_model_cannot_choose_one(name):
    with pytest.raises(UserError, match=rf"^config\.metric={name} does not rank models"):
        is_lower_better(name, "config.metric")
