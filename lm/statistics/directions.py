"""Which direction of a metric is better, by name: configs name metrics before any is computed."""

from lm.errors import UserError
from lm.statistics.metrics import Better

# Metrics that rank models. Descriptive ones (confidence, entropy, tokens, floors, standard errors) are not listed.
BETTER: dict[str, Better] = {
    **dict.fromkeys(
        ("loss", "perplexity", "bits_per_byte", "next_sentence_loss", "ece", "cut_off"),
        "lower",
    ),
    **dict.fromkeys(
        (
            *("accuracy", "next_sentence_accuracy", "token_accuracy", "exact_match", "matthews"),
            *("f1", "precision", "recall", "f1_micro", "f1_macro", "precision_macro", "recall_macro"),
            *("bleu", "chrf", "rouge1", "rouge2", "rougeL"),
        ),
        "higher",
    ),
}


def is_lower_better(name: str, field: str) -> bool:
    """Whether lower is better.

    Args:
      name: of a metric, or of one of its parts: "ece", or "frequency_1of8/ece".
      field: of the config that names it, for the message.

    Raises:
      UserError: if neither direction is better, or the metric is unknown.
    """
    better = BETTER.get(name.rpartition("/")[2])
    if better is None:
        raise UserError(
            f"{field}={name} does not rank models; choose one of {', '.join(BETTER)}, or one of "
            "these for a part, such as frequency_1of8/ece"
        )
    return better == "lower"
