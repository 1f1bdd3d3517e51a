"""How metrics are shown: shares in percent, everything else as it is. Files hold shares as fractions."""

import math

# Metrics from 0 to 1, by the last part of their names: `token_accuracy`, and `f1/animal` by its first.
_SHARES = (
    *("accuracy", "confidence", "ece", "ece_floor", "exact_match", "cut_off"),
    *("f1", "precision", "recall", "rouge1", "rouge2", "rougeL"),
)


def is_share(name: str) -> bool:
    """Whether a metric is a share, or a mean of shares such as `f1_macro`."""
    name = name.partition("/")[0].removesuffix("_micro").removesuffix("_macro")
    return name in _SHARES or name.endswith("_accuracy")


def shown(name: str, value: float) -> str:
    """A metric's value as text, with its unit; "-" where it is not defined."""
    if math.isnan(value):
        return "-"
    return f"{100 * value:.2f}%" if is_share(name) else f"{value:.4f}"


def shown_change(name: str, value: float) -> str:
    """A difference of two values of a metric, with its sign; of shares in percentage points."""
    if math.isnan(value):
        return "-"
    return f"{100 * value:+.2f} pp" if is_share(name) else f"{value:+.4f}"
