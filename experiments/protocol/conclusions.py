"""How many conclusions "A is better calibrated than B" the protocol decides.

A conclusion is the sign of the difference between two methods' errors on the same test items. Changing one thing of the
protocol, such as how answers are scored, may flip it; sampling alone does too, which the comparison of one half
of the test items with the other shows. A conclusion survives if a paired test finds the same difference under both
protocols.

Axes: N items, F features, S swaps.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from experiments.protocol.cells import BINNING, METHODS, PUBLISHED, SCORES, Cell, Cells, Measured
from experiments.protocol.settings import ProtocolConfig, Setting
from lm.calibration.binning import equal_mass
from lm.calibration.errors import ece
from lm.calibration.noise_floor import bin_features, totals_of_sums
from lm.statistics.comparisons import paired_mean_difference, swap_p_value
from lm.statistics.intervals import Interval, mean_interval
from lm.statistics.resampling import Resampler

METRICS = ("ece", "ece_equal_mass", "nll", "brier")
_SIGNIFICANT = 0.05


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Everything that a comparison of two methods depends on.

    Attributes:
      setting: how the model was prompted.
      score: of an answer.
      link: of the methods that were published with others.
      after: the calibrator that follows every method.
      metric: of calibration.
      items: "all" test items, or the "first" or "second" half, split at random.
    """

    setting: Setting
    score: str = "sum"
    link: str = ""
    after: str = ""
    metric: str = "ece"
    items: str = "all"


@dataclasses.dataclass(frozen=True)
class Flips:
    """What happens to conclusions when one thing changes.

    Attributes:
      axis: what changes.
      conclusions: how many there are.
      flipped: the share that flip, with its interval over data sets.
      significant: the share for which a paired test finds a difference before the change.
      flipped_significant: the share of these that flip.
      survived: the share of all for which a paired test finds the same difference before and after.
      reversed: the share of all for which it finds opposite ones.
    """

    axis: str
    conclusions: int
    flipped: float
    interval: Interval
    significant: float
    flipped_significant: float
    survived: float
    reversed: float


class Comparer:
    """Compares pairs of methods under protocols, and remembers the results."""

    def __init__(self, cells: Cells, resamples: int):
        """Nothing is computed yet."""
        self._cells = cells
        self.difference = functools.cache(self._difference)
        self._resampler = functools.cache(functools.partial(Resampler, resamples=resamples, seed=0))

    def _difference(self, protocol: Protocol, one: str, other: str) -> tuple[float, float]:
        """The other method's error minus the one's, and the p-value of a paired test; NaN where one is missing."""
        found = [self._measured(protocol, method) for method in (one, other)]
        if found[0] is None or found[1] is None:
            return math.nan, math.nan
        if protocol.metric in ("nll", "brier"):
            field = f"{protocol.metric}_N"
            difference = paired_mean_difference(getattr(found[0], field), getattr(found[1], field))
            return difference.value, difference.p
        one_NF, other_NF = (self._features(each, protocol.metric) for each in found)
        one_SF, other_SF = self._resampler(len(found[0].correct_N)).swapped_sums(one_NF, other_NF)
        difference_S = ece(totals_of_sums(other_SF)) - ece(totals_of_sums(one_SF))
        return float(difference_S[0]), swap_p_value(difference_S)

    def _measured(self, protocol: Protocol, method: str) -> Measured | None:
        link = protocol.link if method in PUBLISHED.get(protocol.link, ()) else ""
        found = self._cells.measured(Cell(protocol.setting, method, protocol.score, link, protocol.after))
        if found is None or protocol.items == "all":
            return found
        order_N = np.random.default_rng(0).permutation(len(found.correct_N))
        half_N = np.array_split(order_N, 2)[0 if protocol.items == "first" else 1]
        return Measured(*(getattr(found, field.name)[half_N] for field in dataclasses.fields(Measured)))

    def _features(self, items: Measured, metric: str):
        binning = BINNING if metric == "ece" else equal_mass(items.confidence_N, BINNING.bins)
        # Confidences that tie leave fewer bins of equal mass.
        return bin_features(items.confidence_N, items.correct_N, binning, BINNING.bins)


Change = tuple[Protocol, Protocol]


def changes_of(config: ProtocolConfig, settings: Sequence[Setting]) -> dict[str, list[Change]]:
    """Pairs of protocols that differ in one thing, by what it is."""
    same = [Protocol(setting) for setting in settings]
    texts = [each for each in same if each.setting.form == "text"]
    replace = dataclasses.replace

    def changed(**values) -> list[Change]:
        return [(each, replace(each, **values)) for each in same]

    def between(what: str, protocols: Sequence[Protocol]) -> list[Change]:
        """Pairs of settings that differ in one field."""
        return [
            (one, other)
            for one, other in itertools.combinations(protocols, 2)
            if _differing(one.setting, other.setting) == [what]
        ]

    main = [each for each in texts if each.setting.shots == config.main_shots]
    return {
        "other test items (half and half)": [
            (replace(each, items="first"), replace(each, items="second")) for each in same
        ],
        "ECE in bins of equal mass": changed(metric="ece_equal_mass"),
        "Brier score instead of ECE": changed(metric="brier"),
        "NLL instead of ECE": changed(metric="nll"),
        "answers scored per token": changed(score=SCORES[1]),
        "answers scored per byte": changed(score=SCORES[2]),
        "letters instead of text": between("form", same),
        "another order of the shots": between("order", main),
        "another draw of the shots": between("seed", main),
        "another number of shots": between("shots", texts),
        "published link, p - prior": changed(link="difference"),
        "published link, p / prior": changed(link="ratio"),
        "a temperature after both": changed(after="temperature"),
        "temperature and bias after both": changed(after="temperature_bias"),
    }


def flips(comparer: Comparer, axis: str, changes: Sequence[Change]) -> Flips:
    """Counts the conclusions that flip; shares are means over data sets, which count the same."""
    rows: dict[str, list[tuple[float, ...]]] = {}
    for before, after in changes:
        for one, other in _pairs(after.link):
            (sign, p), (sign_after, p_after) = (comparer.difference(each, one, other) for each in (before, after))
            if not (sign and sign_after) or math.isnan(sign + sign_after):
                continue  # the methods tie, or one of them is missing
            is_flipped = sign * sign_after < 0
            is_certain, is_certain_after = p < _SIGNIFICANT, p_after < _SIGNIFICANT
            both = is_certain and is_certain_after
            rows.setdefault(before.setting.data_set, []).append(
                (is_flipped, is_certain, is_certain and is_flipped, both and not is_flipped, both and is_flipped)
            )
    by_set = np.array([np.mean(found, axis=0) for found in rows.values()])
    flipped, significant, flipped_significant, survived, reverse = by_set.mean(axis=0)
    return Flips(
        axis,
        sum(map(len, rows.values())),
        float(flipped),
        mean_interval(by_set[:, 0]),
        float(significant),
        float(flipped_significant / significant) if significant else math.nan,
        float(survived),
        float(reverse),
    )


def _pairs(link: str) -> Iterator[tuple[str, str]]:
    """Pairs of methods; of a published link, those of which one was published with it."""
    for one, other in itertools.combinations(METHODS, 2):
        if not link or one in PUBLISHED[link] or other in PUBLISHED[link]:
            yield one, other


def _differing(one: Setting, other: Setting) -> list[str]:
    return [
        field.name for field in dataclasses.fields(Setting) if getattr(one, field.name) != getattr(other, field.name)
    ]
