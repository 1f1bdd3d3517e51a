"""Outputs of a task's examples with a calibrator applied."""

import numpy as np
import pytest

from lm.calibration.calibrators import Fitted
from lm.errors import UserError
from lm.inference.examples import with_calibrator

LOGITS = 3 * np.random.default_rng(0).normal(size=(41, 3)).astype(np.float32)


def temperature(value, classes=3):
    parameters = {"temperature": np.float32(value), "converged": True, "at_bound": False}
    return Fitted("temperature", parameters, classes, 41, 1.0, 0.9, True, False)


def test_a_calibrator_acts_on_each_choice_of_each_output():
    tags = [{"logits": logits, "place": i} for i, logits in enumerate(np.split(LOGITS, [2, 3, 30]))]
    for output, calibrated in zip(tags, with_calibrator(tags, temperature(4.0)), strict=True):
        np.testing.assert_allclose(calibrated["logits"], output["logits"] / 4, rtol=1e-6)
        assert calibrated["place"] == output["place"]
    with pytest.raises(UserError, match=r"config.calibrator: calibrators need class logits; this task has none"):
        with_calibrator([{"tokens": np.zeros(3)}], temperature(4.0))
