"""The table of families, and which of them a published or one of our models belongs to."""

import dataclasses
from collections.abc import Collection
from typing import Any

from lm.errors import UserError
from lm.modules.config import ModelConfig
from lm.pretrained.decoders import DECODERS
from lm.pretrained.encoder_decoders import ENCODER_DECODERS
from lm.pretrained.encoders import ENCODERS
from lm.pretrained.family import Family
from lm.pretrained.published_config import PublishedConfig

FAMILIES: tuple[Family, ...] = DECODERS + ENCODERS + ENCODER_DECODERS


def family_of_published(published: PublishedConfig) -> Family:
    """The family of a config.json.

    Raises:
      UserError: if it is not known; the message lists those that are.
    """
    kind = published.values.get("model_type")
    for family in FAMILIES:
        if kind in family.model_types:
            return family
    known = ", ".join(sorted(name for family in FAMILIES for name in family.model_types))
    raise UserError(f"{published.place}: model_type={kind!r} is not known: known are {known}")


def published_form(config: ModelConfig, present: Collection[str], task: str = "") -> tuple[Family, dict[str, Any]]:
    """The family that can express one of our models exactly, and its config.json.

    Args:
      config: our shape.
      present: the parts that the model has, of the `Family.parts` of any family.
      task: that the model's head is for; "" for a model without.

    Raises:
      UserError: if there is none.
    """
    alike = []
    for family in FAMILIES:
        parts = tuple(part for part in family.parts if part in present)
        try:
            values = family.to_theirs(config, parts)
            read = family.to_ours(PublishedConfig(values, "config.json"))
        except (UserError, KeyError):
            continue
        if _shape(read) == _shape(config) and len(parts) == len(present):
            alike.append(family)
            head = family.heads.get(task)
            if not task:
                return family, values
            if head is not None and head.pools == ("pooler" in parts):
                return family, values | {"architectures": [head.model]}
    if alike:
        raise UserError(
            f"transformers has no {alike[0].name} model with a head like that of config.task.name={task}: export the "
            "run that this one started from, or fine-tune a BERT or RoBERTa model"
        )
    raise UserError(
        "no published family has a model of this shape, so transformers could not read it; the families are "
        + "; ".join(family.name for family in FAMILIES)
    )


def _shape(config: ModelConfig) -> ModelConfig:
    """The config without what does not matter: how it is computed, and whether defaults are written out."""
    return dataclasses.replace(
        config.executed_as(ModelConfig()),
        kv_heads=config.num_kv_heads,
        head_width=config.size_per_head,
        feed_forward_width=config.size_of_feed_forward,
        scan_layers=False,
        initializer_range=ModelConfig.initializer_range,
    )
