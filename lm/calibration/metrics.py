"""The numbers of a comparison: what each is called, how it is computed, and who proposed it."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Metric:
    """One column of the table.

    Attributes:
      name: its key.
      label: its short name.
      long: its name in full.
      unit: "percent", "nats" or "number".
      better: "lower", "higher" or None.
      definition: in plain words.
      formula: the same as mathematics.
      source: who proposed it.
      binning: "equal_width", "equal_mass" or None.
      specification: how a comparison computed it: bins, intervals.
    """

    name: str
    label: str
    long: str
    unit: str
    better: str | None
    definition: str
    formula: str
    source: str
    binning: str | None = None
    specification: Mapping[str, Any] = dataclasses.field(default_factory=dict)


METRICS: tuple[Metric, ...] = (
    Metric(
        "ece",
        "ECE",
        "Expected calibration error, equal-width bins",
        "percent",
        "lower",
        "Items are sorted into bins by confidence, the probability of the predicted class. In each bin, how far the "
        "share of right answers is from the mean confidence; averaged over bins, weighted by their items.",
        "ECE = Σ_b (n_b / N) · |acc_b − conf_b|",
        "Naeini et al. 2015; Guo et al. 2017",
        "equal_width",
    ),
    Metric(
        "ece_equal_mass",
        "ECE, equal mass",
        "Expected calibration error, equal-mass bins",
        "percent",
        "lower",
        "As ECE, with bins that hold equally many items each; items of equal confidence share a bin. It looks more "
        "closely where most confidences are.",
        "ECE = Σ_b (n_b / N) · |acc_b − conf_b|, n_b ≈ N / M",
        "Nixon et al. 2019",
        "equal_mass",
    ),
    Metric(
        "smooth_ece",
        "smECE",
        "Smooth calibration error",
        "percent",
        "lower",
        "The calibration error after smoothing over confidence with a reflected Gaussian, at the width which equals "
        "the error itself. No bins, so nothing jumps when a confidence crosses an edge.",
        "smECE = smECE_σ at the σ where smECE_σ = σ; smECE_σ = ∫ |E[(y − c) K_σ(t, c)]| dt",
        "Błasiok & Nakkiran 2023",
    ),
    Metric(
        "ks",
        "KS",
        "Cumulative calibration error (Kolmogorov–Smirnov)",
        "percent",
        "lower",
        "Residuals (right or wrong less confidence) summed in order of confidence; the largest distance of that sum "
        "from 0. No bins.",
        "KS = max_t |(1 / N) Σ_{c_i ≤ t} (y_i − c_i)|",
        "Gupta et al. 2021; Arrieta-Ibarra et al. 2022",
    ),
    Metric(
        "mce",
        "MCE",
        "Maximum calibration error",
        "percent",
        "lower",
        "The largest gap of any bin that holds an item. A single item in a bin can make it, so read it with its floor.",
        "MCE = max_b |acc_b − conf_b|",
        "Naeini et al. 2015",
        "equal_width",
    ),
    Metric(
        "rms",
        "RMS",
        "Root mean square calibration error",
        "percent",
        "lower",
        "As ECE, with gaps squared, so that large gaps count for more.",
        "RMS = √(Σ_b (n_b / N) · (acc_b − conf_b)²)",
        "Hendrycks et al. 2019",
        "equal_width",
    ),
    Metric(
        "rms_debiased",
        "RMS, debiased",
        "Root mean square calibration error, debiased",
        "percent",
        "lower",
        "RMS less the part that chance alone contributes to each bin; 0 where that is more than all.",
        "√max(0, Σ_b (n_b / N) · [(acc_b − conf_b)² − acc_b (1 − acc_b) / (n_b − 1)])",
        "Kumar et al. 2019",
        "equal_width",
    ),
    Metric(
        "classwise_ece",
        "Classwise ECE",
        "Classwise calibration error",
        "percent",
        "lower",
        "The ECE of each class's own probability, averaged over classes. It looks at all probabilities, not only at "
        "the highest; with many classes most of them lie in the first bin.",
        "(1 / C) Σ_k Σ_b (n_bk / N) · |share of class k in b − mean p_k in b|",
        "Nixon et al. 2019; Kull et al. 2019",
        "equal_width",
    ),
    Metric(
        "signed_gap",
        "Confidence − accuracy",
        "Signed gap",
        "percent",
        None,
        "Mean confidence less accuracy: positive where the model is over-confident, 0 where errors of both signs "
        "cancel.",
        "mean c − mean y",
        "",
        "equal_width",
    ),
    Metric(
        "nll",
        "NLL",
        "Negative log-likelihood",
        "nats",
        "lower",
        "The mean of −log p(label). A proper score: only the true probabilities minimize it. It is what the "
        "calibrators were fitted to lower, on other items.",
        "NLL = −(1 / N) Σ_i log p_i(y_i)",
        "Good 1952",
    ),
    Metric(
        "brier",
        "Brier",
        "Brier score",
        "number",
        "lower",
        "The mean squared distance between the probabilities and the label's indicator, summed over classes: 0 to 2. "
        "A proper score.",
        "(1 / N) Σ_i Σ_k (p_ik − 1[y_i = k])²",
        "Brier 1950",
    ),
    Metric(
        "accuracy",
        "Accuracy",
        "Accuracy",
        "percent",
        "higher",
        "The share of items whose label has the highest probability; 1/n where n classes share the highest.",
        "(1 / N) Σ_i 1[y_i = argmax p_i]",
        "",
    ),
    Metric(
        "confidence",
        "Confidence",
        "Mean confidence",
        "percent",
        None,
        "The mean probability of the predicted class. A calibrated model's equals its accuracy.",
        "(1 / N) Σ_i max_k p_ik",
        "",
    ),
    Metric(
        "entropy",
        "Entropy",
        "Mean entropy of the predictions",
        "nats",
        None,
        "How spread out the probabilities are.",
        "−(1 / N) Σ_i Σ_k p_ik log p_ik",
        "Shannon 1948",
    ),
    Metric(
        "auroc",
        "AUROC",
        "AUROC of confidence",
        "number",
        "higher",
        "How often a right answer has more confidence than a wrong one, ties as one half. It says whether confidence "
        "can rank answers, which calibration does not; scaling by one temperature hardly changes it.",
        "P(c_i > c_j | i right, j wrong) + ½ P(c_i = c_j | …)",
        "Hendrycks & Gimpel 2017",
    ),
    Metric(
        "aurc",
        "AURC",
        "Area under the risk-coverage curve",
        "percent",
        "lower",
        "The error rate among the most confident share of items, averaged over all shares. Items of equal confidence "
        "count evenly.",
        "(1 / N) Σ_k (errors among the k most confident) / k",
        "Geifman & El-Yaniv 2017",
    ),
)
