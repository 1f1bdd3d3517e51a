"""No objective: a published model whose training is over. It is used, fine-tuned or calibrated as it is."""

import dataclasses
from typing import Any, ClassVar, NoReturn

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from lm.data.tokenizers import Tokenizer
from lm.errors import UserError
from lm.models.build import make_language_model
from lm.models.encoder_lm import EncoderLM
from lm.modules.config import ModelConfig
from lm.objectives.objective import ObjectiveConfig, TextProperties
from lm.types import Params


@dataclasses.dataclass(frozen=True)
class NoObjective:
    """A model without anything to learn from text.

    Attributes:
      model: the network.
      objective: what the model has, and how its states become a text's vector.
    """

    architecture: ClassVar[str] = ""  # any
    settings: ClassVar[tuple[str, ...]] = ("pooler", "pooling", "normalize")
    counts_bytes: ClassVar[bool] = False

    model: nn.Module
    objective: ObjectiveConfig

    @classmethod
    def special_tokens(cls, config: ObjectiveConfig) -> tuple[str, ...]:
        """None: the tokenizer is the published one."""
        return ()

    @classmethod
    def from_config(
        cls, config: ObjectiveConfig, model: ModelConfig, tokenizer: Tokenizer, mesh: Mesh | None, text: TextProperties
    ) -> "NoObjective":
        """With a model of this shape."""
        return cls(make_language_model(model, mesh), config)

    def init(self, key: Array) -> Params:
        """Random parameters, of an encoder without its prediction head."""
        nothing_11 = jnp.zeros((1, 1), jnp.int32)
        if isinstance(self.model, EncoderLM):
            method = _states_and_pooled if self.objective.pooler else EncoderLM.hidden
            return self.model.init(key, nothing_11, method=method)["params"]
        inputs = (nothing_11, nothing_11) if self.model.config.architecture == "encoder_decoder" else (nothing_11,)
        return self.model.init(key, *inputs)["params"]

    def loss(self, *args: Any, **kwargs: Any) -> NoReturn:
        """See `_refuse`."""
        _refuse()

    def evaluate(self, *args: Any, **kwargs: Any) -> NoReturn:
        """See `_refuse`."""
        _refuse()

    def train_batches(self, *args: Any, **kwargs: Any) -> NoReturn:
        """See `_refuse`."""
        _refuse()

    def validation_batches(self, *args: Any, **kwargs: Any) -> NoReturn:
        """See `_refuse`."""
        _refuse()


def _refuse() -> NoReturn:
    raise UserError(
        "config.objective.name=none learns nothing from text: choose an objective to pretrain with, or fine-tune the "
        "model with experiments.finetune"
    )


def _states_and_pooled(model: EncoderLM, tokens_BT: Array) -> tuple[Array, Array]:
    hidden_BTD = model.hidden(tokens_BT)
    return hidden_BTD, model.pool(hidden_BTD)
