"""The metrics of a comparison: names, definitions and sources."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Metric:
    """One column of the table.

    Attributes:
      name: its key.
      label: its short name.
      long: its full name.
      unit: "percent", "nats" or "number".
      better: "lower", "higher" or None.
      definition: in plain words.
      formula: the definition in mathematics.
      source: the papers that proposed it.
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
        "Items are binned by confidence, the probability of the predicted class. The absolute gap between accuracy and "
        "mean confidence in each bin, averaged over bins with their number of items as weights.",
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
        "As ECE, with the same number of items in each bin; items of equal confidence share a bin. The resolution is "
        "finest where most confidences lie.",
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
        "The calibration error after smoothing over confidence with a reflected Gaussian whose width equals the error "
        "itself. Without bins, it does not jump when a confidence crosses an edge.",
        "smECE = smECE_σ at the σ where smECE_σ = σ; smECE_σ = ∫ |E[(y − c) K_σ(t, c)]| dt",
        "Błasiok & Nakkiran 2023",
    ),
    Metric(
        "ks",
        "KS",
        "Cumulative calibration error (Kolmogorov–Smirnov)",
        "percent",
        "lower",
        "Residuals (correctness minus confidence) are summed in order of confidence; the largest absolute value of "
        "that sum. No bins.",
        "KS = max_t |(1 / N) Σ_{c_i ≤ t} (y_i − c_i)|",
        "Gupta et al. 2021; Arrieta-Ibarra et al. 2022",
    ),
    Metric(
        "mce",
        "MCE",
        "Maximum calibration error",
        "percent",
        "lower",
        "The largest gap of any non-empty bin. A bin with a single item can decide it, so compare it with its floor.",
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
        "As ECE, with squared gaps, so that large gaps weigh more.",
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
        "RMS without the part that chance contributes to each bin; 0 if that part is larger.",
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
        "The ECE of each class's own probability, averaged over classes. It covers all probabilities, not only the "
        "highest; with many classes most of them fall into the first bin.",
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
        "Mean confidence minus accuracy: positive if the model is overconfident. Errors of opposite sign cancel.",
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
        "The mean of −log p(label). A proper score: only the true probabilities minimize it. Calibrators minimize it "
        "on the items they are fitted to.",
        "NLL = −(1 / N) Σ_i log p_i(y_i)",
        "Good 1952",
    ),
    Metric(
        "brier",
        "Brier",
        "Brier score",
        "number",
        "lower",
        "The squared distance between the probabilities and the one-hot label, summed over classes, averaged over "
        "items: 0 to 2. A proper score.",
        "(1 / N) Σ_i Σ_k (p_ik − 1[y_i = k])²",
        "Brier 1950",
    ),
    Metric(
        "accuracy",
        "Accuracy",
        "Accuracy",
        "percent",
        "higher",
        "The share of items whose label has the highest probability; a tie among n classes counts 1/n.",
        "(1 / N) Σ_i 1[y_i = argmax p_i]",
        "",
    ),
    Metric(
        "confidence",
        "Confidence",
        "Mean confidence",
        "percent",
        None,
        "The mean probability of the predicted class. For a calibrated model it equals the accuracy.",
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
        "How often a correct answer has higher confidence than a wrong one; ties count one half. It measures how well "
        "confidence ranks answers, not calibration: temperature scaling hardly changes it.",
        "P(c_i > c_j | i right, j wrong) + ½ P(c_i = c_j | …)",
        "Hendrycks & Gimpel 2017",
    ),
    Metric(
        "aurc",
        "AURC",
        "Area under the risk-coverage curve",
        "percent",
        "lower",
        "The error rate among the most confident items, averaged over all coverages. Items of equal confidence share "
        "their errors evenly.",
        "(1 / N) Σ_k (errors among the k most confident) / k",
        "Geifman & El-Yaniv 2017",
    ),
)
