"""Models from their configs: the one place that maps architectures to classes."""

import flax.linen as nn
from jax.sharding import Mesh

from lm.errors import UserError
from lm.models.decoder_lm import DecoderLM
from lm.models.encoder_decoder_lm import EncoderDecoderLM
from lm.models.encoder_lm import EncoderLM
from lm.models.recurrent import RecurrentModel
from lm.modules.config import RECURRENT, ModelConfig

_LANGUAGE_MODELS = {"decoder": DecoderLM, "encoder": EncoderLM, "encoder_decoder": EncoderDecoderLM}


def make_body(config: ModelConfig, mesh: Mesh | None = None) -> nn.Module:
    """A model that heads can be put on.

    Every body has `hidden(tokens_BT, segments_BT=None, positions_BT=None, types_BT=None)`, states [B, T, D], and
    `pool(hidden_BTD, segments_BT)`, one vector per text.

    Args:
      config: its shape.
      mesh: of devices, or None for one device.

    Raises:
      UserError: for an encoder-decoder, which has no heads.
    """
    if config.architecture == "encoder_decoder":
        raise UserError(
            "config.model.architecture=encoder_decoder generates text (config.task.name=sequence_to_sequence): for "
            "this task choose encoder, decoder, lstm or gru"
        )
    if config.architecture in RECURRENT:
        return RecurrentModel(config, mesh)
    return _LANGUAGE_MODELS[config.architecture](config, mesh)


def make_language_model(config: ModelConfig, mesh: Mesh | None = None) -> nn.Module:
    """A model with `logits` over the vocabulary: `DecoderLM`, `EncoderLM` or `EncoderDecoderLM`.

    Args:
      config: its shape.
      mesh: of devices, or None for one device.

    Raises:
      UserError: for recurrent baselines, which only work with heads.
    """
    if config.architecture in RECURRENT:
        raise UserError(
            f"config.model.architecture={config.architecture} is a baseline for classification, tagging and question "
            "answering, not a language model: choose decoder, encoder or encoder_decoder"
        )
    return _LANGUAGE_MODELS[config.architecture](config, mesh)
