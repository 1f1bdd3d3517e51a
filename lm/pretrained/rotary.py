"""Rotary positions in config.json: keys of transformers 4 (rope_theta, rope_scaling) and 5 (rope_parameters)."""

from typing import Any

from lm.errors import UserError
from lm.modules.config import ModelConfig
from lm.pretrained.published_config import PublishedConfig


def rotary_from_published(published: PublishedConfig, base: float = 10_000.0) -> dict[str, Any]:
    """Our settings of rotary positions.

    Args:
      published: config.json.
      base: of the family, where config.json names none.

    Raises:
      UserError: for a kind of scaling that is not supported.
    """
    group = published.group("rope_parameters") if "rope_parameters" in published else published.group("rope_scaling")
    found = {"rotary_base": group.number("rope_theta", published.number("rope_theta", base))}
    kind = group.values.get("rope_type", group.values.get("type", "default"))
    if kind == "default":
        return found
    if kind == "linear":
        return found | {"rotary_scaling": "linear", "rotary_factor": group.number("factor")}
    if kind == "llama3":
        return found | {
            "rotary_scaling": "llama3",
            "rotary_factor": group.number("factor"),
            "rotary_low_frequency": group.number("low_freq_factor"),
            "rotary_high_frequency": group.number("high_freq_factor"),
            "rotary_original_length": group.integer("original_max_position_embeddings"),
        }
    raise UserError(f"{group.place}: rotary scaling {kind!r} is not supported, only default, linear and llama3")


def rotary_to_published(config: ModelConfig) -> dict[str, Any]:
    """The keys of transformers 4, which transformers 5 reads too."""
    found: dict[str, Any] = {"rope_theta": config.rotary_base}
    if config.rotary_scaling == "linear":
        found["rope_scaling"] = {"rope_type": "linear", "factor": config.rotary_factor}
    if config.rotary_scaling == "llama3":
        found["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": config.rotary_factor,
            "low_freq_factor": config.rotary_low_frequency,
            "high_freq_factor": config.rotary_high_frequency,
            "original_max_position_embeddings": config.rotary_original_length,
        }
    return found
