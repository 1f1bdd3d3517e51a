"""The table of families, and which of them a published or one of our models belongs to."""

import dataclasses
from collections.abc import Collection
from typing import Any

from lm.errors import UserError
from lm.modules.config import TRANSFORMERS, ModelConfig
from lm.pretrained.decoders import DECODERS
from lm.pretrained.encoder_decoders import ENCODER_DECODERS
from lm.pretrained.encoders import ENCODERS
from lm.pretrained.family import Family
from lm.pretrained.published_config import PublishedConfig

FAMILIES: tuple[Family, ...] = DECODERS + ENCODERS + ENCODER_DECODERS


def family_of_published(published: PublishedConfig) -> Family:
    """The family of a config.json.

    Raises:
      UserError: if it is not known; the message lists those that are. Also if its weights are quantized in a way of
        config.json's, whose tensors hold other numbers.
    """
    if "quantization_config" in published:
        raise UserError(
            f"{published.place}: weights quantized by quantization_config cannot be read: use the model's float "
            "weights, or a GGUF file"
        )
    kind = published.values.get("model_type")
    for family in FAMILIES:
        if kind in family.model_types:
            return family
    known = ", ".join(sorted(name for family in FAMILIES for name in family.model_types))
    raise UserError(f"{published.place}: model_type={kind!r} is not known: known are {known}")


def published_form(
    config: ModelConfig, present: Collection[str], model_type: str | None = None, task: str = ""
) -> tuple[Family, dict[str, Any]]:
    """The family that can express one of our models exactly, and its config.json.

    Args:
      config: our shape.
      present: the parts that the model has, of the `Family.parts` of any family.
      model_type: of the family that is asked first. Some shapes belong to several: a Mistral without a window to Llama.
      task: that the model's head is for; "" for a model without.

    Raises:
      UserError: if there is none.
    """
    families = FAMILIES if config.architecture in TRANSFORMERS else ()
    alike = []
    for family in sorted(families, key=lambda family: model_type not in family.model_types):
        parts = tuple(part for part in family.parts if part in present)
        try:
            values = family.to_theirs(config)
            read = family.to_ours(PublishedConfig(values, "config.json"))
        except (UserError, KeyError):
            continue
        # Where there may be a bias of the logits, transformers takes a missing one for zero.
        read = dataclasses.replace(read, output_bias=read.output_bias and config.output_bias)
        if _shape(read) != _shape(config) or len(parts) < len(present):
            continue
        alike.append(family.name)
        head = family.heads.get(task)
        if not task or (head is not None and head.pools == ("pooler" in parts)):
            return family, values | {"architectures": [family.model(parts, task)]}
    if alike:
        raise UserError(
            f"transformers has no {alike[0]} model with a head like that of config.task.name={task}: export the run "
            "that this one started from, or fine-tune a BERT or RoBERTa model"
        )
    raise UserError(
        "no published family has a model of this shape, so transformers could not read it; the families are "
        + "; ".join(family.name for family in FAMILIES)
    )


def _shape(config: ModelConfig) -> ModelConfig:
    """The shape alone: how it is computed does not matter, nor whether defaults are written out."""
    decoder_layers = None if config.architecture != "encoder_decoder" else config.decoder_layers or config.layers
    return dataclasses.replace(
        config.executed_as(ModelConfig()),
        decoder_layers=decoder_layers,
        scale_embeddings=config.scales_embeddings,
        kv_heads=config.num_kv_heads,
        head_width=config.size_per_head,
        attention_scale=config.attention_scale or config.size_per_head**-0.5,
        feed_forward_width=config.size_of_feed_forward,
        scan_layers=False,
        initializer_range=ModelConfig.initializer_range,
    )
