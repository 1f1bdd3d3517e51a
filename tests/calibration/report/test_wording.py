"""Conclusions of a comparison: no sentence claims more than its numbers show."""

import dataclasses
import math

import pytest

from lm.calibration.noise_floor import Floor
from lm.calibration.report.wording import change_of, format_p, format_value, suggested, verdict, with_unit
from lm.statistics.comparisons import Difference
from lm.statistics.intervals import Interval
from tests.calibration.comparison_examples import changed, comparison, difference, only, with_method

CALIBRATED = {"value": 0.011, "interval": Interval(0.006, 0.016, 0.003), "floor": Floor(0.012, 0.019, 0.4)}


def plain(text):
    return text.replace("\u00a0", " ")


def after(given):
    return plain(verdict(given).after)


def notes(given):
    return plain(" ".join(verdict(given).notes))


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (0.08123, "percent", "8.12%"),
        (0.7, "percent", "70.0%"),
        (2.34567, "nats", "2.3457 nats"),
        (-0.00001, "percent", "0.00%"),
        (-0.05, "percent", "−5.00%"),
        (math.inf, "nats", "∞ nats"),
        (math.nan, "percent", "–"),
        (math.nan, "nats", "–"),
    ],
)
def test_values(value, unit, expected):
    assert with_unit(value, unit) == expected


def test_signs_and_p_values():
    assert format_value(0.02, "percent", signed=True) == "+2.00"
    assert format_value(0.0, "percent", signed=True) == "0.00"
    assert plain(format_p(0.0004)) == "p < 0.001"
    assert plain(format_p(0.0412)) == "p = 0.041"
    assert format_p(math.nan) == ""


def test_only_significant_changes_are_claimed():
    significant, not_significant = difference(-0.05, 0.001), difference(-0.05, 0.2)
    assert change_of(significant, "lower", 0.95) == "better"
    assert change_of(significant, "higher", 0.95) == "worse"
    assert change_of(significant, None, 0.95) == "changed"
    assert change_of(not_significant, "lower", 0.95) == "unclear"
    assert change_of(difference(-0.05, 0.03), "lower", 0.99) == "unclear"
    assert change_of(Difference(-0.05, -0.06, -0.04, math.nan), "lower", 0.95) == "better"
    assert change_of(Difference(-0.05, -0.06, 0.01, math.nan), "lower", 0.95) == "unclear"
    assert change_of(Difference(-0.05, math.nan, math.nan, math.nan), "lower", 0.95) == "untested"
    assert change_of(Difference(0.0, 0.0, 0.0, 1.0), "lower", 0.95) == "same"
    assert change_of(None, "lower", 0.95) is None


def test_improved_and_calibrated():
    said = verdict(comparison())
    assert "Mean confidence is 78.1% and accuracy is 70.0%: the model is overconfident." in said.before
    assert plain(said.before).endswith(
        "ECE is 8.12% (95% interval 7.12 to 9.12%), significantly above the noise floor of 1.20% (p < 0.001)."
    )
    assert said.best.name == "temperature"
    assert plain(said.after) == (
        "The best calibrator by held-out NLL is Temperature (T = 1.53). With it, ECE is 1.31% (95% interval 0.31 to "
        "2.31%), significantly lower than before (p < 0.001) and not significantly above the noise floor of 1.20% "
        "(p = 0.310)."
    )
    assert "NLL falls from 2.4010 nats to 2.3450 nats" in notes(comparison())
    assert "Accuracy is unchanged at 70.0%." in said.notes


def test_a_calibrator_is_suggested_if_it_lowers_the_loss():
    assert suggested(comparison()) == "temperature"
    worse = changed("temperature", nll={"value": 3.0, "difference": difference(0.6, 0.0005)})
    alone = dataclasses.replace(worse, methods=worse.methods[:2])
    assert verdict(alone).best.name == "temperature"
    assert suggested(alone) == suggested(only("none")) == ""


def test_improved_but_not_calibrated():
    said = after(changed("temperature", ece={"floor": Floor(0.012, 0.019, 0.01)}))
    assert (
        "significantly lower than before (p < 0.001) and significantly above the noise floor of 1.20% (p = 0.010)"
        in said
    )


def test_not_distinguishable_from_before():
    said = after(changed("temperature", ece={"difference": difference(-0.004, 0.41)}))
    assert ", not significantly different from before (p = 0.410) and" in said
    assert "lower" not in said


def test_got_worse():
    said = after(changed("temperature", ece={"value": 0.12, "difference": difference(0.04, 0.0005)}))
    assert ", significantly higher than before (p < 0.001)" in said
    assert "lower than" not in said


def test_calibrated_before():
    given = changed("none", ece=CALIBRATED, signed_gap={"interval": Interval(-0.01, 0.01, 0.005)})
    assert "not significantly above the noise floor of 1.20% (p = 0.400)" in plain(verdict(given).before)
    assert "overconfident" not in verdict(given).before
    assert "contributes most to the ECE" not in notes(given)


def test_underconfident_before():
    given = changed(
        "none", confidence={"value": 0.62}, signed_gap={"value": -0.08, "interval": Interval(-0.09, -0.07, 0.005)}
    )
    assert "Mean confidence is 62.0% and accuracy is 70.0%: the model is underconfident." in verdict(given).before


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (0.001, "Accuracy falls from 70.0% to 69.0%"),
        (0.3, "Accuracy is 69.0%, not significantly different from 70.0% before"),
    ],
)
def test_accuracy_changed(p, expected):
    given = changed("temperature", accuracy={"value": 0.69, "difference": difference(-0.01, p)})
    assert expected in notes(given)
    assert "unchanged" not in notes(given)


def test_no_uncertainty_no_claim():
    given = changed("histogram", nll={"value": 2.3})
    given = dataclasses.replace(given, methods=(given.uncalibrated, given.method("histogram")))
    assert "With it, ECE is 2.00%, significantly above the noise floor" in after(given)
    assert "NLL is 2.3000 nats, compared with 2.4010 nats before" in notes(given)


def test_what_lowers_the_nll_significantly_is_best():
    given = changed("temperature", nll={"difference": difference(-0.056, 0.001)})
    lower = changed("histogram", nll={"value": 2.1, "difference": difference(-0.3, 0.34)})
    methods = (given.uncalibrated, given.method("temperature"), lower.method("histogram"))
    given = dataclasses.replace(given, methods=methods)
    assert verdict(given).best.name == "temperature"
    assert after(given).startswith("Of the calibrators that lower the held-out NLL significantly, the best is Temper")


def test_no_calibrator_lowers_nll_significantly():
    said = after(changed("temperature", nll={"difference": difference(-0.056, 0.34)}))
    assert said.startswith("No calibrator lowers the held-out NLL significantly; the lowest is that of Temperature (T")


def test_no_calibrator_lowers_nll():
    said = after(changed("temperature", nll={"value": 2.5, "difference": difference(0.1, 0.001)}))
    assert said.startswith("No accepted calibrator lowers the held-out NLL; the closest is Temperature")


def test_the_best_is_accepted_and_has_a_likelihood():
    given = changed("matrix", nll={"value": 1.0})
    assert verdict(given).best.name == "temperature"
    assert "1 of 3 calibrators was not accepted" in notes(given)
    assert verdict(changed("temperature", nll={"value": math.nan})).best.name == "histogram"
    given = only("none")
    assert verdict(given).best is None
    assert after(given) == "No calibrator was fitted."
    rejected = dataclasses.replace(given.uncalibrated, name="matrix", accepted=False)
    given = dataclasses.replace(given, methods=(given.uncalibrated, rejected))
    assert after(given) == "There is no accepted calibrator to compare with."


def test_the_heaviest_bin_counts_items_not_only_distance():
    first, *others, last = comparison().uncalibrated.bins
    first = dataclasses.replace(first, count=1, accuracy=1.0)
    given = with_method("none", bins=(first, *others, last))
    assert f"on its {last.count:,} items" in notes(given)


def test_a_fit_at_its_bound_is_reported():
    given = with_method("temperature", at_bound=True)
    assert "Treat Temperature with caution: its fit hit its search bound." in notes(given)
