"""Conformal prediction: sets of classes that contain the true one with a given probability, for any model.

Fitted on items that neither the model nor its calibrator has seen, independent and distributed like future items, the
sets contain the label of a new item with probability at least `coverage`, on average over items. Items of one document
are not independent. With many documents of about equally many items the promise still holds on average over documents,
to within what `report_sets` shows with clusters.

Probabilities are formed in float64 from float32 logits, for a few items at a time, so that memory is O(C) and not
O(N C) wherever no sets are returned. Sums over 50,000 classes are then exact to about 1e-13.

Axes: N items, n items of a chunk, M empty sets, C classes, K places in their order.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from lm.calibration.inputs import (
    ArrayLike,
    InputError,
    as_array,
    checked_clusters,
    checked_count,
    checked_labels,
    checked_logits,
    checked_names,
    checked_numbers,
    checked_share,
)
from lm.calibration.logits import Logits, take, whole
from lm.statistics.intervals import Interval, mean_interval, share_interval

METHODS = ("lac", "aps", "naive_aps", "raps")

_CHUNK_NUMBERS = 2**21  # probabilities in memory at a time


@dataclasses.dataclass(frozen=True, eq=False)
class JudgedSets:
    """The sets of items with known labels: what is needed to report on them, without the sets themselves.

    Attributes:
      hit_N: whether each set contains the label.
      size_N: its number of classes.
      was_empty_N: whether no class was within the threshold, so that the likeliest one was added.
    """

    hit_N: np.ndarray
    size_N: np.ndarray
    was_empty_N: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class ConformalSets:
    """A fitted rule.

    Attributes:
      method: "lac" includes every class above a probability: the smallest sets on average (Sadinle et al. 2019). "aps"
        includes classes from the most likely down, up to a total probability: larger where the model is uncertain
        (Romano et al. 2020). "naive_aps" does so without the random choice at the border, so its sets are larger.
        "raps" also penalizes each class beyond the `free`-th, which cuts off long tails (Angelopoulos et al. 2021).
      coverage: the target probability.
      threshold: largest score of a class in the set; one for all classes, or one for each, [C]: infinite for a class
        that is always in the set because there were too few items.
      penalty: of "raps", per class beyond `free`.
      free: of "raps", number of classes without penalty.
      classes: C of the items fitted on; None: not checked.
    """

    method: str
    coverage: float
    threshold: float | np.ndarray
    penalty: float = 0.01
    free: int = 5
    classes: int | None = None

    def sets(self, logits: ArrayLike, seed: int = 0) -> np.ndarray:
        """The classes in each item's set, bool [N, C], from logits [N, C].

        "aps" and "raps" randomize whether the last class is included (from `seed`); without that they would cover too
        much. No set is empty.
        """
        logits_NC = np.asarray(whole(_checked_for([self], logits)))
        chunk = _Chunk(logits_NC, _shares(len(logits_NC), seed))
        inside_NC = chunk.scores_of_classes(self) <= self.threshold
        empty_M = np.flatnonzero(~inside_NC.any(axis=1))
        inside_NC[empty_M, logits_NC[empty_M].argmax(axis=1)] = True
        return inside_NC

    def judge(self, logits: ArrayLike, labels: ArrayLike, seed: int = 0) -> JudgedSets:
        """What `report_sets` needs of the sets that `sets` would return, in O(C) memory.

        Args:
          logits: [N, C], or factors.
          labels: the true classes.
          seed: as for `sets`.
        """
        return judge_sets([self], logits, labels, seed)[0]


def fit_sets(
    logits: ArrayLike,
    labels: ArrayLike,
    coverage: float = 0.9,
    method: str = "lac",
    *,
    penalty: float = 0.01,
    free: int = 5,
    seed: int = 1,
    groups: ArrayLike | None = None,
) -> ConformalSets:
    """Finds the threshold: the ceil((N + 1) coverage)-th smallest score of a true class.

    Args:
      logits: [N, C], or factors.
      labels: the true classes.
      coverage: the target probability.
      method: one of `METHODS`.
      penalty: of "raps".
      free: of "raps".
      seed: of the random choices of "aps" and "raps".
      groups: numbers or names of groups of classes, [C]: each has a threshold of its own, so that labels of every group
        are covered at the target (Vovk et al. 2003, Mondrian). `range(C)` gives class-conditional coverage. Classes of
        a group with too few labels are in every set. None: one threshold.

    Raises:
      InputError: for an unknown method, logits and labels that don't fit, or if N is too small for the coverage (0.9
        needs at least 9 items).
    """
    return fit_several(logits, labels, coverage, [method], [groups], penalty=penalty, free=free, seed=seed)[0]


def fit_several(
    logits: ArrayLike,
    labels: ArrayLike,
    coverage: float,
    methods: Sequence[str],
    groups: Sequence[ArrayLike | None] | None = None,
    *,
    penalty: float = 0.01,
    free: int = 5,
    seed: int = 1,
) -> list[ConformalSets]:
    """`fit_sets` for each of several methods and their `groups`, with the probabilities of each item formed once."""
    for method in methods:
        if method not in METHODS:
            raise InputError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    checked_share(coverage, "coverage")
    free, penalty = checked_count(free, "free", 0), float(checked_numbers([penalty], "penalty")[0])
    if penalty < 0:
        raise InputError(f"penalty must be at least 0, not {penalty}")
    checked = checked_logits(logits=logits)
    labels_N = np.asarray(checked_labels(labels, checked.shape))
    items, classes = checked.shape
    if _rank(items, coverage) > items:
        raise InputError(
            f"coverage {coverage} needs at least {math.ceil(coverage / (1 - coverage) - 1e-9)} items, not {items}"
        )
    groups_of = [checked_clusters(each, classes, "groups") for each in groups or [None] * len(methods)]
    unfitted = [ConformalSets(method, coverage, math.inf, penalty, free, classes) for method in methods]
    chunks = _chunks(checked, labels_N, seed)
    scores = [[chunk.scores_of_labels(rule, of_chunk_n) for rule in unfitted] for chunk, of_chunk_n in chunks]
    return [
        dataclasses.replace(rule, threshold=_threshold(np.concatenate(scores_N), labels_N, coverage, group_C))
        for rule, group_C, scores_N in zip(unfitted, groups_of, zip(*scores, strict=True), strict=True)
    ]


def judge_sets(rules: Sequence[ConformalSets], logits: ArrayLike, labels: ArrayLike, seed: int = 0) -> list[JudgedSets]:
    """`ConformalSets.judge` for each of several rules, with the probabilities of each item formed once."""
    checked = _checked_for(rules, logits)
    labels_N = np.asarray(checked_labels(labels, checked.shape))
    found = [
        [chunk.judged(rule, of_chunk_n) for rule in rules] for chunk, of_chunk_n in _chunks(checked, labels_N, seed)
    ]
    return [JudgedSets(*map(np.concatenate, zip(*of_rule, strict=True))) for of_rule in zip(*found, strict=True)]


def _threshold(
    scores_N: np.ndarray, labels_N: np.ndarray, coverage: float, group_C: np.ndarray | None
) -> float | np.ndarray:
    """The conformal quantile of the labels' scores, of all or within each group of classes, [C]."""
    if group_C is None:
        return _quantile(scores_N, coverage)
    group_N = group_C[labels_N]
    of_groups = [_quantile(scores_N[group_N == group], coverage) for group in range(group_C.max() + 1)]
    return np.array(of_groups)[group_C]


def _quantile(scores_N: np.ndarray, coverage: float) -> float:
    rank = _rank(scores_N.size, coverage)
    return math.inf if rank > scores_N.size else float(np.sort(scores_N)[rank - 1])


def _rank(items: int, coverage: float) -> int:
    return math.ceil((items + 1) * coverage - 1e-9)  # 100 * 0.55 is above 55 in floating point


# --- scores ---


class _Chunk:
    """Nonconformity of the classes of a few items: low for likely classes.

    From the likeliest class down, the scores of every method never fall.
    """

    def __init__(self, logits_nC: np.ndarray, share_n: np.ndarray):
        """Takes logits, and how much of each class's own probability a random choice at the border leaves out."""
        self._logits_nC, self._share_n1 = logits_nC, share_n[:, None]

    @functools.cached_property
    def _sorted_nC(self) -> np.ndarray:
        """Probabilities, falling."""
        return _softmax(np.sort(self._logits_nC, axis=1)[:, ::-1])

    @functools.cached_property
    def _total_nC(self) -> np.ndarray:
        """Probability of each class and those before it."""
        return np.cumsum(self._sorted_nC, axis=1)

    def scores_of_classes(self, rule: ConformalSets) -> np.ndarray:
        """In the order of the classes, [n, C]."""
        if rule.method == "lac":
            return 1 - _softmax(self._logits_nC)
        order_nC = np.argsort(-self._logits_nC, axis=1, kind="stable")
        scores_nC = np.empty(order_nC.shape)
        np.put_along_axis(scores_nC, order_nC, self._scores_at(rule, np.arange(order_nC.shape[1])[None]), axis=1)
        return scores_nC

    def scores_of_labels(self, rule: ConformalSets, labels_n: np.ndarray) -> np.ndarray:
        """Of one class of each item, [n]."""
        return self._scores_at(rule, self._places(labels_n))[:, 0]

    def judged(self, rule: ConformalSets, labels_n: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The fields of `JudgedSets`."""
        if isinstance(rule.threshold, np.ndarray):
            inside_nC = self.scores_of_classes(rule) <= rule.threshold
            hit_n = inside_nC[np.arange(len(labels_n)), labels_n]
            size_n = np.count_nonzero(inside_nC, axis=1)
        else:
            hit_n = self.scores_of_labels(rule, labels_n) <= rule.threshold
            size_n = self._sizes(rule)
        was_empty_n = size_n == 0
        is_likeliest_n = self._places(labels_n)[:, 0] == 0
        return hit_n | (was_empty_n & is_likeliest_n), np.maximum(size_n, 1), was_empty_n

    def _scores_at(self, rule: ConformalSets, place_nK: np.ndarray) -> np.ndarray:
        """Of the classes at these places from the likeliest down, [n, K]."""
        own_nK = np.take_along_axis(self._sorted_nC, place_nK, axis=1)
        if rule.method == "lac":
            return 1 - own_nK
        total_nK = np.take_along_axis(self._total_nC, place_nK, axis=1)
        if rule.method == "naive_aps":
            return total_nK
        scores_nK = total_nK - self._share_n1 * own_nK
        if rule.method == "raps":
            scores_nK += rule.penalty * np.maximum(place_nK + 1 - rule.free, 0)
        return scores_nK

    def _sizes(self, rule: ConformalSets) -> np.ndarray:
        """How many classes have a score of at most the one threshold, [n], by bisection."""
        items, classes = self._logits_nC.shape
        inside_n1, outside_n1 = np.zeros((items, 1), int), np.full((items, 1), classes)  # the border is between them
        for _ in range(classes.bit_length()):
            middle_n1 = np.minimum((inside_n1 + outside_n1) // 2, classes - 1)
            is_inside_n1 = (self._scores_at(rule, middle_n1) <= rule.threshold) & (inside_n1 < outside_n1)
            inside_n1 = np.where(is_inside_n1, middle_n1 + 1, inside_n1)
            outside_n1 = np.where(is_inside_n1, outside_n1, np.maximum(middle_n1, inside_n1))
        return inside_n1[:, 0]

    def _places(self, labels_n: np.ndarray) -> np.ndarray:
        """Places of labels among classes from the likeliest down, [n, 1]; of equal ones the first is first."""
        logits_nC, labels_n1 = self._logits_nC, labels_n[:, None]
        of_label_n1 = np.take_along_axis(logits_nC, labels_n1, axis=1)
        is_before_nC = logits_nC > of_label_n1
        is_before_nC |= (logits_nC == of_label_n1) & (np.arange(logits_nC.shape[1]) < labels_n1)
        return np.count_nonzero(is_before_nC, axis=1)[:, None]


def _softmax(logits_nC: np.ndarray) -> np.ndarray:
    """In float64."""
    odds_nC = np.subtract(logits_nC, logits_nC.max(axis=1, keepdims=True), dtype=np.float64)
    np.exp(odds_nC, out=odds_nC)
    odds_nC /= odds_nC.sum(axis=1, keepdims=True)
    return odds_nC


def _shares(items: int, seed: int) -> np.ndarray:
    """The random choice of each item, in [0, 1)."""
    return np.random.default_rng(checked_count(seed, "seed", 0)).uniform(size=items)


def _chunks(logits: Logits, labels_N: np.ndarray, seed: int) -> Iterator[tuple[_Chunk, np.ndarray]]:
    """A few items at a time, with their labels."""
    items, classes = logits.shape
    share_N = _shares(items, seed)
    logits = jax.tree.map(jnp.asarray, logits)  # to the device once
    size = max(1, _CHUNK_NUMBERS // classes)
    for start in range(0, items, size):
        part = slice(start, start + size)
        yield _Chunk(np.asarray(whole(take(logits, part))), share_N[part]), labels_N[part]


def _checked_for(rules: Sequence[ConformalSets], logits: ArrayLike) -> Logits:
    checked = checked_logits(logits=logits)
    for rule in rules:
        if rule.classes not in (None, checked.shape[1]):
            raise InputError(f"the sets were fitted to {rule.classes} classes, not {checked.shape[1]}")
    return checked


# --- reports ---


@dataclasses.dataclass(frozen=True)
class SetReport:
    """Performance of sets on labelled items.

    Attributes:
      coverage: share of sets that contain the label.
      low: lower end of its 95% interval: of Clopper & Pearson (1934) for independent items, of Student's t over
        clusters; NaN with one cluster.
      high: upper end.
      mean_size: mean number of classes in a set.
      coverage_by_size: coverage for each set size that occurs; ideally constant.
      median_size: median number of classes in a set.
      size_interval: 95% interval of the mean size, by Student's t over items or clusters.
      items: number of items.
    """

    coverage: float
    low: float
    high: float
    mean_size: float
    coverage_by_size: dict[int, float]
    median_size: float
    size_interval: Interval
    items: int


def report_sets(sets: ArrayLike | JudgedSets, labels: ArrayLike, clusters: ArrayLike | None = None) -> SetReport:
    """Evaluates sets on items that they were not fitted to.

    Args:
      sets: bool [N, C], or what `judge_sets` found.
      labels: the true classes; not read where `sets` are judged already.
      clusters: numbers or names, [N], the same for items that depend on each other, such as tokens of one document.

    Raises:
      InputError: if the sets are not bools, or the labels or clusters don't fit.
    """
    judged = sets if isinstance(sets, JudgedSets) else _judged(sets, labels)
    return _report(judged.hit_N, judged.size_N, checked_clusters(clusters, len(judged.hit_N)))


def report_by_group(judged: JudgedSets, groups: ArrayLike, clusters: ArrayLike | None = None) -> dict[str, SetReport]:
    """`report_sets` of the items of each group, by its name.

    Args:
      judged: from `judge_sets`.
      groups: numbers or names, [N]. The labels themselves give class-conditional coverage.
      clusters: as for `report_sets`.

    Raises:
      InputError: if groups or clusters don't fit.
    """
    items = len(judged.hit_N)
    groups_N, clusters_N = checked_names(groups, items, "groups"), checked_clusters(clusters, items)
    if groups_N is None:
        raise InputError("groups are missing: give each item a number or a name")
    found = {}
    for group in np.unique(groups_N):
        of_N = groups_N == group
        found[str(group)] = _report(
            judged.hit_N[of_N], judged.size_N[of_N], None if clusters_N is None else clusters_N[of_N]
        )
    return found


def _judged(sets: ArrayLike, labels: ArrayLike) -> JudgedSets:
    sets_NC = np.asarray(as_array(sets, "sets"))
    if sets_NC.dtype != bool or sets_NC.ndim != 2 or not sets_NC.size:
        raise InputError(f"sets must be bool [items, classes], not {sets_NC.dtype} {sets_NC.shape}")
    labels_N = np.asarray(checked_labels(labels, sets_NC.shape))
    size_N = sets_NC.sum(axis=1)
    return JudgedSets(sets_NC[np.arange(len(labels_N)), labels_N], size_N, size_N == 0)


def _report(hit_N: np.ndarray, size_N: np.ndarray, clusters_N: np.ndarray | None) -> SetReport:
    items, hits = len(hit_N), int(hit_N.sum())
    if clusters_N is None:
        low, high = _clopper_pearson(hits, items)
    else:
        interval = share_interval(hit_N, clusters_N)
        low, high = interval.low, interval.high
    return SetReport(
        coverage=hits / items,
        low=low,
        high=high,
        mean_size=float(size_N.mean()),
        coverage_by_size={int(size): float(hit_N[size_N == size].mean()) for size in np.unique(size_N)},
        median_size=float(np.median(size_N)),
        size_interval=mean_interval(size_N, clusters_N),
        items=items,
    )


def _clopper_pearson(hits: int, items: int) -> tuple[float, float]:
    """The exact 95% interval of a share."""
    low = 0.0 if hits == 0 else float(stats.beta.ppf(0.025, hits, items - hits + 1))
    high = 1.0 if hits == items else float(stats.beta.ppf(0.975, hits + 1, items - hits))
    return low, high
