"""Rotary positions in config.json: keys of transformers 4 (rope_theta, rope_scaling) and 5 (rope_parameters)."""

from typing import Any

from lm.modules.config import ModelConfig
from lm.pretrained.published_config import PublishedConfig

_KEYS = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
_LLAMA3 = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
# Keys of each kind of scaling, besides those that all have.
_KEYS_OF_KIND: dict[str, tuple[str, ...]] = {"default": (), "linear": ("factor",), "llama3": ("factor", *_LLAMA3)}


def rotary_from_published(
    published: PublishedConfig, base: str = "rope_theta", fraction: str | None = None, default_fraction: float = 1.0
) -> dict[str, Any]:
    """Our settings of rotary positions.

    Args:
      published: config.json.
      base: the key of the base outside of the group of rotary settings.
      fraction: the key of the share of each head that is rotated; None: models of the family rotate all of it.
      default_fraction: where config.json has no such key.

    Raises:
      UserError: for a kind of scaling that is not supported.
    """
    name = "rope_scaling" if published.values.get("rope_scaling") else "rope_parameters"
    group = published.group(name)
    found = rotary_group(group, published.number(base, 10_000.0), published.integer("max_position_embeddings", None))
    if fraction is None:
        for place in (published, group):
            place.expect("partial_rotary_factor", 1.0)
        return found
    share = group.number("partial_rotary_factor", published.number(fraction, default_fraction))
    return found | {"rotary_fraction": share}


def rotary_group(group: PublishedConfig, base: float, max_length: int | None) -> dict[str, Any]:
    """Our settings of base and scaling, from the group that holds them.

    Args:
      group: rope_scaling, rope_parameters, or a part of it.
      base: where the group names none.
      max_length: of the model, in tokens.

    Raises:
      UserError: for a kind of scaling that is not supported, or a key that its kind does not have.
    """
    kinds = tuple(_KEYS_OF_KIND)
    kind = group.choice("rope_type", kinds, group.choice("type", kinds, "default"))
    group.only(_KEYS + _KEYS_OF_KIND[kind])
    found: dict[str, Any] = {"rotary_base": group.number("rope_theta", base)}
    if kind != "default":
        found |= {"rotary_scaling": kind, "rotary_factor": group.number("factor")}
    if kind == "llama3":
        found |= {
            "rotary_low_frequency": group.number("low_freq_factor"),
            "rotary_high_frequency": group.number("high_freq_factor"),
            "rotary_original_length": group.integer("original_max_position_embeddings", max_length),
        }
    return found


def rotary_to_published(config: ModelConfig) -> dict[str, Any]:
    """The keys of transformers 4, which transformers 5 reads too."""
    found: dict[str, Any] = {"rope_theta": config.rotary_base}
    if config.rotary_scaling != "none":
        found["rope_scaling"] = {"rope_type": config.rotary_scaling, "factor": config.rotary_factor}
    if config.rotary_scaling == "llama3":
        found["rope_scaling"] |= {
            "low_freq_factor": config.rotary_low_frequency,
            "high_freq_factor": config.rotary_high_frequency,
            "original_max_position_embeddings": config.rotary_original_length,
        }
    return found
