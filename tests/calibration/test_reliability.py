"""The reliability diagram from arrays: its bins, and what is drawn."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.axes import Axes

import lm.calibration
from lm.calibration.binning import Binning
from lm.calibration.inputs import InputError
from lm.calibration.noise_floor import null_totals
from lm.calibration.reliability import reliability_bins
from lm.statistics.intervals import wilson_interval

RANDOM = np.random.default_rng(0)
CONFIDENCE = RANDOM.uniform(0.5, 1, size=300)
CORRECT = (RANDOM.random(300) < CONFIDENCE).astype(float)
BINS = Binning(5)


def bins_of(confidence, correct, weights=None):
    null = null_totals(confidence, correct, BINS, resamples=300, rng=np.random.default_rng(1), weights_N=weights)
    return reliability_bins(confidence, correct, BINS, null, weights_N=weights)


def test_bins_are_those_of_the_items():
    found = bins_of(CONFIDENCE, CORRECT)
    assert [one.low for one in found] == pytest.approx([0.4, 0.6, 0.8])
    for one in found:
        inside = (one.low < CONFIDENCE) & (one.high >= CONFIDENCE)
        assert one.count == inside.sum()
        assert one.accuracy == pytest.approx(CORRECT[inside].mean())
        assert one.confidence == pytest.approx(CONFIDENCE[inside].mean())
        ends = wilson_interval(CORRECT[inside].sum(), inside.sum())
        assert (one.accuracy_low, one.accuracy_high) == pytest.approx(tuple(ends))
        assert one.band_low < one.confidence < one.band_high


def test_equal_weights_change_nothing_and_unequal_ones_widen_intervals():
    plain = bins_of(CONFIDENCE, CORRECT)
    for one, other in zip(plain, bins_of(CONFIDENCE, CORRECT, np.full(300, 2.5)), strict=True):
        assert (other.count, other.accuracy) == (one.count, pytest.approx(one.accuracy))
        assert other.accuracy_low == pytest.approx(one.accuracy_low)
    uneven = bins_of(CONFIDENCE, CORRECT, np.where(np.arange(300) % 3, 0.1, 5.0))
    for one, other in zip(plain, uneven, strict=True):
        assert other.accuracy_high - other.accuracy_low > one.accuracy_high - one.accuracy_low
        assert other.band_high - other.band_low > one.band_high - one.band_low


def test_the_diagram_is_three_lines(tmp_path):
    labels = (RANDOM.random(300) < CONFIDENCE).astype(int)
    axes = lm.calibration.reliability_diagram(labels, probabilities=CONFIDENCE, title="my model [/]", resamples=50)
    assert isinstance(axes, Axes)
    assert axes.get_title(loc="left") == "my model [/]"
    error = lm.calibration.calibration_error(labels, probabilities=CONFIDENCE, resamples=50)
    assert any(f"{100 * error.value:.2f}" in text.get_text() for text in axes.texts)
    axes.figure.savefig(tmp_path / "reliability.png")
    with pytest.raises(InputError, match="percentages"):
        lm.calibration.reliability_diagram(labels, probabilities=100 * CONFIDENCE)
    with pytest.raises(AttributeError, match="no attribute"):
        lm.calibration.nothing  # noqa: B018


def test_importing_the_package_imports_neither_jax_nor_matplotlib():
    code = "import sys, lm.calibration; sys.exit('jax' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
