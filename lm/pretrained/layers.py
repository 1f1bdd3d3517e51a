"""The layers of a published model: how many there are, and which of them see only a window."""

from collections.abc import Sequence
from typing import Any

from lm.errors import UserError
from lm.modules.config import ModelConfig
from lm.pretrained.published_config import PublishedConfig

FULL, LOCAL = "full_attention", "sliding_attention"


def count_of_layers(published: PublishedConfig, default: int, name: str = "num_hidden_layers") -> int:
    """How many layers the model has.

    Raises:
      UserError: if it is not a number, or more than any model has: one rule for each would fill the memory.
    """
    layers = published.integer(name, default, least=1)
    if layers > 10_000:
        raise UserError(f"{published.place}: {name}={layers} is more than any model has")
    return layers


def windows(
    published: PublishedConfig, default: int | None, layer_types: Sequence[str], has_window: bool = True
) -> dict[str, Any]:
    """Our settings of the layers that see a window only.

    Args:
      published: config.json, whose `sliding_window` and `layer_types` count.
      default: the window, where config.json has none; null is no window.
      layer_types: of each layer, where config.json has no such list.
      has_window: whether the model uses its window.

    Raises:
      UserError: if a layer has a window and the model has not.
    """
    types = published.choices("layer_types", (FULL, LOCAL), layer_types, len(layer_types))
    if LOCAL not in types:
        return {}
    window = published.integer("sliding_window", default, least=1, nullable=True)
    if window is None or not has_window:
        raise UserError(f"{published.place}: layer_types has {LOCAL}, and the model has no sliding_window")
    return {
        "attention_window": window,
        "global_layers": tuple(number for number, kind in enumerate(types) if kind == FULL),
    }


def layer_types(config: ModelConfig) -> list[str]:
    """What each layer sees, in their terms."""
    has_window = config.attention_window is not None
    return [LOCAL if has_window and number not in config.global_layers else FULL for number in range(config.layers)]
