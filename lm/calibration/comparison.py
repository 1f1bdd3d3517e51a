"""Compares calibrators on held-out items: every number with its interval, noise floor and paired test.

Axes: N items, C classes, M bins, R resamples.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import numpy as np

from lm.calibration import errors, scores
from lm.calibration.binning import Binning, BinTotals, bin_totals, equal_mass
from lm.calibration.calibrator import FEWEST
from lm.calibration.calibrators import CALIBRATORS, TAKE_ZEROS, Fitted, LabelsRuledOut, fit, rare_classes
from lm.calibration.guarantees import Guarantees, measure_guarantees
from lm.calibration.inputs import InputError
from lm.calibration.logits import Logits, whole
from lm.calibration.metrics import METRICS, Metric
from lm.calibration.noise_floor import Floor, ece_interval, error_interval, floor_of, null_totals, observed_totals
from lm.calibration.outcomes import Outcomes
from lm.calibration.predictions import Predictions, check_disjoint
from lm.calibration.reliability import reliability_bins
from lm.calibration.resampled_errors import (
    BINNED,
    Resamplable,
    Resampled,
    Sums,
    binned_sums,
    classwise_sums,
    smooth_sums,
)
from lm.calibration.results import Bin, Comparison, Entry, Items, Method, Settings
from lm.statistics.comparisons import paired_mean_difference, resampled_difference
from lm.statistics.intervals import bias_corrected_interval, mean_interval, share_interval, within_limits
from lm.statistics.metrics import SHARE, mean_metric
from lm.statistics.resampling import Resampler

_MEANS = {
    "nll": "nll_N",
    "brier": "brier_N",
    "accuracy": "correct_N",
    "confidence": "confidence_N",
    "entropy": "entropy_N",
}
_LARGEST_CLASSWISE = 2**26  # most probabilities held at once
_LARGEST_CLASSWISE_RESAMPLED = 2**21
_LARGEST_CLASSWISE_WEIGHTED = 2**18  # items of different weights cannot be drawn together
_COUNTING = ("rms_debiased", "aurc")  # which count items, so that weights have no meaning for them


def compare(
    fit_part: Predictions | None,
    test_part: Predictions,
    calibrators: Sequence[str],
    settings: Settings = Settings(),
    *,
    title: str = "",
    source: str = "",
    progress: Callable[[str], None] = lambda name: None,
) -> tuple[Comparison, dict[str, Fitted]]:
    """Fits each calibrator on one part and measures it on the other, alongside the uncalibrated predictions.

    Calibrators that cannot be fitted to these items, such as temperature scaling to labels with probability 0, are left
    out, and `Comparison.notes` says why.

    Args:
      fit_part: items to fit calibrators on; None to measure without fitting any.
      test_part: items to measure on; shares no id and no cluster with `fit_part`.
      calibrators: names in `CALIBRATORS`.
      settings: bins, resampling, level, seed.
      title: of the report.
      source: where the predictions come from.
      progress: called with the name of each method before it is measured.

    Returns:
      The results, and the fitted calibrators by name.

    Raises:
      UserError: if the parts share an id or a cluster, or for an unknown calibrator.
    """
    unknown = next((name for name in calibrators if name not in CALIBRATORS), None)
    if unknown is not None:
        raise InputError(f"unknown calibrator {unknown!r}; known are {', '.join(CALIBRATORS)}")
    if fit_part is None and calibrators:
        raise InputError("calibrators need items to fit to: give a fit part, or no calibrators")
    unchecked = "" if fit_part is None else check_disjoint(fit_part, test_part)
    notes = [unchecked] if unchecked else []
    if test_part.weights_N is not None and not test_part.weights_N.all():
        counted_N = test_part.weights_N > 0
        notes.append(f"{np.count_nonzero(~counted_N):,} of {len(test_part):,} items have weight 0 and are left out")
        test_part = test_part.select(counted_N)
    clusters_N = None
    if test_part.clusters_N is not None:
        clusters_N = np.unique(test_part.clusters_N, return_inverse=True)[1]
    resampler = Resampler(len(test_part), resamples=settings.resamples, seed=settings.seed, clusters_N=clusters_N)
    measure = _Measurer(test_part, clusters_N, resampler, settings)
    progress("none")
    before = measure(test_part.logits)
    methods = [_uncalibrated(before)]
    fitted = {}
    for name in calibrators:
        progress(name)
        assert fit_part is not None
        try:
            fitted[name] = _fit(name, fit_part)
        except InputError as error:
            notes.append(f"{CALIBRATORS[name].label} is left out: {error}")
            continue
        after = measure(fitted[name].apply(test_part.logits))
        methods.append(_calibrated(fitted[name], after, before, _note_on_rare_classes(name, fit_part)))
    items = Items(
        fit=0 if fit_part is None else len(fit_part),
        test=len(test_part),
        fit_clusters=None if fit_part is None else _number_of_clusters(fit_part),
        test_clusters=_number_of_clusters(test_part),
        classes=test_part.logits.shape[1],
    )
    columns = tuple(_column(metric, settings) for metric in METRICS if metric.name in before.values)
    return Comparison(title, source, items, settings, columns, tuple(methods), tuple(notes)), fitted


def _fit(name: str, part: Predictions) -> Fitted:
    try:
        fitted = fit(
            name, part.logits, part.labels_N, part.weights_N, priors=part.priors, unlabelled=part.unlabelled_MC
        )
    except LabelsRuledOut as error:
        item = error.items_M[0]
        which = f"item {item} of those for fitting" if part.ids_N is None else f"the item with id {part.ids_N[item]}"
        raise InputError(
            f"the label of {which} has probability 0 ({error.items_M.size} of {len(part):,} labels do), which this "
            f"calibrator cannot change; {', '.join(TAKE_ZEROS[:2])} and {TAKE_ZEROS[2]} can"
        ) from error
    return dataclasses.replace(fitted, checkpoint=part.checkpoint, model=part.model)


def _number_of_clusters(part: Predictions) -> int | None:
    return None if part.clusters_N is None else int(np.unique(part.clusters_N).size)


def _note_on_rare_classes(name: str, part: Predictions) -> str:
    rare_K = rare_classes(name, part.labels_N, part.logits.shape[1], part.weights_N)
    if not rare_K.size:
        return ""
    first = [str(rare) if part.class_names is None else part.class_names[rare] for rare in rare_K[:3].tolist()]
    others = f" and {rare_K.size - 3:,} others" if rare_K.size > 3 else ""
    classes, get, their = ("class", "it gets", "its") if rare_K.size == 1 else ("classes", "they get", "their")
    return (
        f"fewer than {FEWEST} items to fit {classes} {', '.join(first)}{others}: {get} no parameters of {their} own, "
        f"and {their} figures are unreliable"
    )


def _uncalibrated(measured: "_Measured") -> Method:
    return Method(
        name="none",
        label="Uncalibrated",
        entries=measured.entries(None),
        bins=measured.bins(),
        risk_coverage=measured.risk_coverage(),
        guarantees=measured.guarantees,
    )


def _calibrated(fitted: Fitted, measured: "_Measured", before: "_Measured", note: str) -> Method:
    return Method(
        name=fitted.name,
        label=CALIBRATORS[fitted.name].label,
        summary=fitted.summary,
        converged=fitted.converged,
        at_bound=fitted.at_bound,
        accepted=fitted.accepted,
        message="; ".join(filter(None, [_message(fitted), note])),
        entries=measured.entries(before),
        bins=measured.bins(),
        risk_coverage=measured.risk_coverage(),
        guarantees=measured.guarantees,
    )


def _message(fitted: Fitted) -> str:
    if not fitted.accepted:
        return "not used: it increased the negative log-likelihood of the items it was fitted to"
    if fitted.at_bound:
        return "the data do not determine the temperature: every label is the top class, or confidence says nothing"
    if not fitted.converged:
        return "the fit stopped before it converged"
    return ""


def _column(metric: Metric, settings: Settings) -> Metric:
    """The metric with these settings filled in."""
    long = metric.long
    specification: dict[str, object] = {"confidence": "probability of the predicted class"}
    if metric.binning:
        long = long.replace("bins", f"bins ({settings.bins})")
        specification |= {**Binning(settings.bins).specification(), "scheme": metric.binning}
    if metric.name in _MEANS:
        specification = {"interval": "Student's t over items, or over clusters if there are any"}
    else:
        of_ece = metric.name in ("ece", "ece_equal_mass")
        specification["interval"] = (
            f"{'hybrid' if of_ece else 'bias-corrected'} bootstrap, {settings.resamples} resamples"
        )
        specification["p of a change"] = "swapping the two models' items, or clusters if there are any"
    return dataclasses.replace(metric, long=long, specification=specification)


@dataclasses.dataclass(frozen=True)
class _Measured:
    """One method's numbers on the test items."""

    found: Outcomes
    binning: Binning
    null: BinTotals
    values: dict[str, float]
    resampled: Resampled
    floors: dict[str, Floor]
    items: Resamplable
    resampler: Resampler
    clusters_N: np.ndarray | None
    level: float
    guarantees: Guarantees | None

    def entries(self, before: "_Measured | None") -> dict[str, Entry]:
        """Every metric, compared with `before` if it is given."""
        swapped = {} if before is None else self.items.swapped_differences(before.items, self.resampler)
        return {name: self._entry(name, before, swapped) for name in self.values}

    def _entry(self, name: str, before: "_Measured | None", swapped: dict[str, np.ndarray]) -> Entry:
        value, floor = self.values[name], self.floors.get(name)
        interval, difference = None, None
        if name in _MEANS:
            per_item = getattr(self.found, _MEANS[name])
            interval_of = share_interval if name == "accuracy" else mean_interval
            weights_N = self.items.weights_N
            interval = interval_of(per_item, self.clusters_N, self.level, weights_N)
            if before is not None:
                old = getattr(before.found, _MEANS[name])
                with np.errstate(invalid="ignore"):  # the loss of a label with probability 0 has no difference
                    difference = paired_mean_difference(old, per_item, self.clusters_N, self.level, weights_N)
        elif name in self.resampled.errors:
            resampled_R = self.resampled.errors[name]
            if name in self.resampled.ece_totals:
                interval = ece_interval(*self.resampled.ece_totals[name], self.level)
            elif floor is None or name == "signed_gap":
                interval = bias_corrected_interval(value, resampled_R, self.level)
            else:
                interval = error_interval(value, resampled_R, floor, self.level)
            if name in ("auroc", "aurc"):
                right, items = float(self.items.correct_N.sum()), len(self.items.correct_N)
                trials = min(self.resampler.groups, *((right, items - right) if name == "auroc" else ()), items)
                interval = within_limits(interval, value, SHARE, trials, self.level)
            if before is not None:
                change_R = resampled_R - before.resampled.errors[name]
                difference = resampled_difference(value - before.values[name], change_R, swapped[name], self.level)
        return Entry(value, interval, floor, difference)

    def bins(self) -> tuple[Bin, ...]:
        """The non-empty bins of the reliability diagram."""
        items = self.items
        return reliability_bins(
            items.confidence_N, items.correct_N, self.binning, self.null, self.level, items.weights_N
        )

    def risk_coverage(self) -> tuple[tuple[float, float], ...]:
        """At most 200 points of the curve."""
        items = self.items
        coverage, risk = scores.risk_coverage(scores.Ranking.of(items.confidence_N), items.correct_N, items.weights_N)
        chosen = np.unique(np.linspace(0, coverage.size - 1, 200).round().astype(int))
        return tuple((float(coverage[i]), float(risk[i])) for i in chosen)


class _Measurer:
    """Measures logits of the test items, with the same resamples in every call."""

    def __init__(self, part: Predictions, clusters_N: np.ndarray | None, resampler: Resampler, settings: Settings):
        self._part, self._labels_N, self._weights_N = part, part.labels_N, part.weights_N
        self._clusters_N, self._resampler, self._settings = clusters_N, resampler, settings

    def __call__(self, logits: Logits) -> _Measured:
        settings, weights_N = self._settings, self._weights_N
        found = self._part.outcomes(logits)
        confidence_N, correct_N = np.asarray(found.confidence_N), np.asarray(found.correct_N)
        binnings = {"equal_width": Binning(settings.bins), "equal_mass": equal_mass(confidence_N, settings.bins)}
        sums = [
            *(
                binned_sums(confidence_N, correct_N, scheme, binning, settings.bins, weights_N)
                for scheme, binning in binnings.items()
            ),
            smooth_sums(confidence_N, correct_N, weights_N),
        ]
        binnings["fine"] = Binning(errors.GRID)
        totals = {scheme: bin_totals(confidence_N, correct_N, each, weights_N) for scheme, each in binnings.items()}
        null = {
            scheme: null_totals(
                confidence_N,
                correct_N,
                binning,
                resamples=settings.resamples,
                rng=np.random.default_rng(settings.seed + 1),
                clusters_N=self._clusters_N,
                weights_N=weights_N,
            )
            for scheme, binning in binnings.items()
        }
        binned = {name: of for name, of in BINNED.items() if weights_N is None or name not in _COUNTING}
        values = {name: float(function(totals[scheme])) for name, (function, scheme) in binned.items()}
        observed = {
            scheme: observed_totals(confidence_N, correct_N, each, weights_N) for scheme, each in binnings.items()
        }
        floors = {
            name: floor_of(float(function(observed[scheme])), function(null[scheme]))
            for name, (function, scheme) in binned.items()
        }

        ranking = scores.Ranking.of(confidence_N)
        cumulative = errors.cumulative_error(confidence_N, correct_N, weights_N)
        values |= {
            "smooth_ece": errors.smooth_ece(confidence_N, correct_N, weights_N),
            "ks": cumulative.maximum,
            "auroc": float(scores.auroc(ranking, correct_N, weights_N)),
        }
        if weights_N is None:
            values["aurc"] = float(scores.aurc(ranking, correct_N))
        # By the same sums over cells as the draws, whose smooth error differs from the exact one by less than 1e-5.
        residuals_M, residuals_RM = (
            (fine.correct - fine.confidence) / observed["fine"].count.sum() for fine in (observed["fine"], null["fine"])
        )
        smooth = errors.smooth_ece_of_residuals
        floors["smooth_ece"] = floor_of(float(smooth(residuals_M)), smooth(residuals_RM))
        # The grid only has the sum at its 1,024 edges, too coarse where confidences crowd; use it only for clusters.
        floors["ks"] = cumulative.floor
        if self._clusters_N is not None:
            floors["ks"] = floor_of(float(_largest_sum(residuals_M)), _largest_sum(residuals_RM))
        values |= {name: mean_metric(getattr(found, field), weights_N).value for name, field in _MEANS.items()}
        sums += self._classwise(logits, values, floors)
        if self._resampler.groups < 2 and self._clusters_N is not None:  # one cluster shows no spread, so no p
            floors = {name: dataclasses.replace(floor, p=math.nan) for name, floor in floors.items()}
        items = Resamplable(tuple(sums), confidence_N, correct_N, weights_N)
        return _Measured(
            found=found,
            binning=binnings["equal_width"],
            null=null["equal_width"],
            values={metric.name: values[metric.name] for metric in METRICS if metric.name in values},
            resampled=items.resampled(self._resampler),
            floors=floors,
            items=items,
            resampler=self._resampler,
            clusters_N=self._clusters_N,
            level=settings.level,
            guarantees=measure_guarantees(self._part, logits, settings.coverage, settings.risks, seed=settings.seed),
        )

    def _classwise(self, logits: Logits, values: dict[str, float], floors: dict[str, Floor]) -> list[Sums]:
        """Adds the classwise error where [N, C] probabilities fit in memory, and its floor where it is resampled.

        Returns:
          Sums to resample the error from; empty if that would take too much memory.
        """
        items, classes = logits.shape
        if items * classes > _LARGEST_CLASSWISE:
            return []
        bins = self._settings.bins
        probabilities_NC = np.asarray(jax.nn.softmax(whole(logits), axis=-1))
        totals = errors.class_bin_totals(self._labels_N, probabilities_NC, bins, self._weights_N)
        values["classwise_ece"] = float(errors.ece(totals).mean())
        if items * classes > (_LARGEST_CLASSWISE_RESAMPLED if self._weights_N is None else _LARGEST_CLASSWISE_WEIGHTED):
            return []
        is_class_NC = self._labels_N[:, None] == np.arange(classes)
        # One floor per class: their mean is exact, the spread treats classes as independent.
        rng = np.random.default_rng(self._settings.seed + 1)
        null_RC = np.stack(
            [
                errors.ece(
                    null_totals(
                        probabilities_NC[:, c],
                        is_class_NC[:, c],
                        Binning(bins),
                        resamples=self._settings.resamples,
                        rng=rng,
                        clusters_N=self._clusters_N,
                        weights_N=self._weights_N,
                    )
                )
                for c in range(classes)
            ],
            axis=1,
        )
        floors["classwise_ece"] = floor_of(values["classwise_ece"], null_RC.mean(axis=1))
        return [classwise_sums(self._labels_N, probabilities_NC, bins, self._weights_N)]


def _largest_sum(residuals: np.ndarray) -> np.ndarray:
    """The largest |cumulative sum| of residuals over cells, [..., M] to [...]."""
    return np.abs(np.cumsum(residuals, axis=-1)).max(axis=-1)
