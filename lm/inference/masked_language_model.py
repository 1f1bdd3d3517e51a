"""Encoders trained to predict hidden tokens.

Axes: B rows of a batch, T positions, K hidden tokens of a text, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy import special

from lm.errors import UserError
from lm.inference.model_in_use import ModelInUse, Step, as_list
from lm.inference.special_tokens import encode_marked
from lm.models.encoder_lm import EncoderLM
from lm.objectives.masked_lm import SPECIAL_TOKENS
from lm.tasks import text_encoding
from lm.tasks.supervised import Example
from lm.types import Batch, Params

_MASK = SPECIAL_TOKENS[2]


@dataclasses.dataclass(frozen=True)
class Filling:
    """Candidates for a hidden token.

    Attributes:
      tokens: the likeliest, as texts, by calibrated probabilities if there are any.
      probabilities: of these tokens, from the model.
      calibrated_probabilities: of these tokens; None without a calibrator.
    """

    tokens: tuple[str, ...]
    probabilities: tuple[float, ...]
    calibrated_probabilities: tuple[float, ...] | None


class MaskedLanguageModel(ModelInUse):
    """Predicts hidden tokens from both sides."""

    kind: ClassVar[str] = "a masked language model"
    uses: ClassVar[tuple[str, ...]] = ("fill", "embed")

    def fill(self, texts: Sequence[str], top: int = 5) -> list[list[Filling]]:
        """The likeliest tokens for each [MASK] of each text.

        Args:
          texts: with [MASK] in place of each hidden token, or the name that a published tokenizer has for it, such as
            <mask>. White space before it belongs to the hidden token.
          top: how many tokens.

        Raises:
          UserError: for a text that is too long or has no [MASK], and for a tokenizer without such a token.
        """
        texts = as_list(texts, "texts")
        examples = [self._example(f"text {number}", text) for number, text in enumerate(texts, 1)]
        outputs = self.outputs(self._logits, examples, text_encoding.AXES | {"places": "K"}, {})
        return [
            [self._filling(logits_V, top) for logits_V in output["logits"][: len(example["places"])]]
            for example, output in zip(examples, outputs, strict=True)
        ]

    def _example(self, place: str, text: str) -> Example:
        if not any(name in text for name in self._masks):
            raise UserError(f"{place} has no {' or '.join(self._masks)}: write one for each hidden token")
        layout = text_encoding.Layout.of(self.tokenizer, self.config.model.architecture)
        room = layout.room(self.config.model, pair=False)
        ids = encode_marked(self.tokenizer, text, self._masks)
        text_encoding.check_lengths([len(ids)], room, self.config.model, False, [place])
        example = layout.join(ids)
        places = np.flatnonzero(example["tokens"] == self.mask)
        return example | {"places": places.astype(np.int32)}

    @property
    def mask(self) -> int:
        """The token that hides another.

        Raises:
          UserError: if the tokenizer has none.
        """
        found = self.tokenizer.special_id(_MASK)
        if found is None:
            raise UserError(f"the tokenizer has no token like {_MASK}, so this model cannot fill texts: use another")
        return found

    @property
    def _masks(self) -> tuple[str, ...]:
        """The names of the token that hides another."""
        published = self.tokenizer.published
        own = None if published is None else published.roles.get("mask")
        return (_MASK,) if own in (None, _MASK) else (own, _MASK)

    def _filling(self, logits_V: np.ndarray, top: int) -> Filling:
        raw_V, best_V = special.softmax(logits_V), None
        if self.calibrator is not None:
            best_V = special.softmax(np.asarray(self.calibrator.apply(logits_V[None])[0]))
        ranked = raw_V if best_V is None else best_V
        best = np.argsort(-ranked[: self.tokenizer.vocab_size], kind="stable")[:top]
        tokens = tuple(self.tokenizer.decode([token], skip_special_tokens=False) for token in best)
        return Filling(tokens, tuple(raw_V[best].tolist()), None if best_V is None else tuple(best_V[best].tolist()))

    @functools.cached_property
    def _logits(self) -> Step:
        def step(params: Params, batch: Batch) -> dict[str, Array]:
            inputs = batch["tokens"], batch["segments"]
            hidden_BTD = self.model.apply({"params": params}, *inputs, method=EncoderLM.hidden)
            hidden_BKD = jnp.take_along_axis(hidden_BTD, batch["places"][:, :, None], axis=1)
            return {"logits": self.model.apply({"params": params}, hidden_BKD, method=EncoderLM.logits)}

        return self._compiled(step)
