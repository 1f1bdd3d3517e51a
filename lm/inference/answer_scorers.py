"""Log-probabilities of the answers to a prompt, from models that write and from models that fill.

Axes: B rows of a batch, T positions, P pairs of a hidden place and a token, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lm.console import Console
from lm.data.chat import Chat
from lm.errors import UserError
from lm.inference.language_models import LanguageModel
from lm.inference.masked_language_model import MaskedLanguageModel
from lm.inference.model_in_use import Step
from lm.inference.special_tokens import encode_marked
from lm.models.encoder_lm import EncoderLM
from lm.prompting.prompts import Prompt
from lm.tasks import text_encoding
from lm.tasks.supervised import Example
from lm.types import Batch, Params

# Prompts that are scored together: what they share is read once for all.
_AT_ONCE = 256


@dataclasses.dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as a model reads it.

    Attributes:
      tokens: of the prompt; for a model that fills, without its hidden places.
      after: tokens after the hidden places, for a model that fills.
      answers: token ids of every answer, those of one class after those of another.
      bytes: length of every answer in UTF-8, without white space around it.
      classes: the class of every answer.
    """

    tokens: tuple[int, ...]
    after: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    bytes: tuple[int, ...]
    classes: tuple[int, ...]

    @property
    def length(self) -> int:
        """The number of tokens with the longest answer."""
        return len(self.tokens) + len(self.after) + max(map(len, self.answers))


class AnswerScorer(Protocol):
    """A model that gives answers their probabilities."""

    @property
    def room(self) -> int:
        """The greatest `length` of a prompt."""

    def encode(self, prompts: Sequence[Prompt]) -> list[EncodedPrompt]:
        """The prompts as token ids.

        Raises:
          UserError: for a prompt that the model cannot read.
        """

    def log_probs(self, prompts: Sequence[EncodedPrompt], console: Console) -> list[np.ndarray]:
        """The log-probability of each answer of each prompt, summed over its tokens, in nats."""


def scorer_of(model: LanguageModel | MaskedLanguageModel) -> AnswerScorer:
    """The scorer for a model."""
    return FillingScorer(model) if isinstance(model, MaskedLanguageModel) else WritingScorer(model)


@dataclasses.dataclass(frozen=True)
class WritingScorer:
    """Answers that a decoder continues with, or that an encoder-decoder writes to the end.

    Attributes:
      model: in use.
    """

    model: LanguageModel

    @property
    def room(self) -> int:
        """A decoder need not read the last token of an answer."""
        longest = self.model.config.model.max_length
        return longest + 1 if self.model.continues else longest

    def encode(self, prompts: Sequence[Prompt]) -> list[EncodedPrompt]:
        """As `AnswerScorer` says."""
        if prompts and prompts[0].messages:
            tokens = Chat.of(self.model.tokenizer).render_batch([prompt.messages for prompt in prompts])
        else:
            tokens = self.model.prompt_tokens([self._read(prompt) for prompt in prompts])
        known: dict[tuple[str, tuple], tuple] = {}
        found = []
        for prompt, ids in zip(prompts, tokens, strict=True):
            # Tokens of an answer depend on the end of a prompt alone.
            end = "" if prompt.messages else prompt.before[-20:]
            key = (end, prompt.answers)
            if key not in known:
                known[key] = self._answers(prompt, end)
            found.append(EncodedPrompt(tuple(ids), (), *known[key]))
        return found

    def log_probs(self, prompts: Sequence[EncodedPrompt], console: Console) -> list[np.ndarray]:
        """As `AnswerScorer` says."""
        found: list[np.ndarray] = []
        with console.progress("scoring", len(prompts)) as advance:
            for first in range(0, len(prompts), _AT_ONCE):
                part = prompts[first : first + _AT_ONCE]
                read = [prompt.tokens for prompt in part for _ in prompt.answers]
                answers = [answer for prompt in part for answer in prompt.answers]
                scored = iter(self.model.token_log_probs(read, answers))
                found += [np.array([next(scored).total_log_prob for _ in prompt.answers]) for prompt in part]
                advance(len(part))
        return found

    def _read(self, prompt: Prompt) -> str:
        return prompt.before if self.model.continues else prompt.before + prompt.after

    def _answers(self, prompt: Prompt, end: str) -> tuple:
        """Token ids, bytes and classes of the answers."""
        tokens = tuple(tuple(self._tokens(end, text, bool(prompt.messages))) for _, text in prompt.numbered_answers)
        return tokens, *_sizes_and_classes(prompt)

    def _tokens(self, end: str, text: str, in_chat: bool) -> list[int]:
        tokenizer = self.model.tokenizer
        if not self.model.continues:
            # Its end makes one answer that begins another a different one.
            ids = encode_marked(tokenizer, text, self.model.marks)
            return [*ids, *([] if tokenizer.end_of_text is None else [tokenizer.end_of_text])]
        if in_chat:
            return tokenizer.encode(text)
        before, whole = tokenizer.encode_batch([end, end + text])
        if whole[: len(before)] == before:
            return whole[len(before) :]
        raise UserError(
            f"after {end[-12:]!r} the answer {text!r} changes the tokens of the prompt: end config.prompt.item without "
            "white space before the answer, and begin the answers with it, as in '1= Positive'"
        )


@dataclasses.dataclass(frozen=True)
class FillingScorer:
    """Answers in hidden places of a text, one for each token, all filled at once (Schick & Schuetze 2021).

    Attributes:
      model: a masked language model.
    """

    model: MaskedLanguageModel

    @property
    def room(self) -> int:
        """Special tokens are not counted."""
        return self._layout.room(self.model.config.model, pair=False)

    def encode(self, prompts: Sequence[Prompt]) -> list[EncodedPrompt]:
        """As `AnswerScorer` says."""
        _ = self.model.mask
        if any(prompt.messages for prompt in prompts):
            raise UserError(f"config.prompt.chat: {self.model.kind} has no conversations: leave it out")
        found = []
        for prompt in prompts:
            # White space before a hidden token belongs to it.
            text = prompt.before.rstrip()
            before, after = self.model.tokenizer.encode_batch([text, prompt.after])
            tokens = tuple(tuple(self._tokens(text, before, answer)) for _, answer in prompt.numbered_answers)
            found.append(EncodedPrompt(tuple(before), tuple(after), tokens, *_sizes_and_classes(prompt)))
        return found

    def log_probs(self, prompts: Sequence[EncodedPrompt], console: Console) -> list[np.ndarray]:
        """As `AnswerScorer` says."""
        examples, owners = [], []
        for number, prompt in enumerate(prompts):
            for length in sorted(set(map(len, prompt.answers))):
                chosen = [place for place, answer in enumerate(prompt.answers) if len(answer) == length]
                examples.append(self._example(prompt, length, [prompt.answers[place] for place in chosen]))
                owners.append((number, chosen))
        found = [np.zeros(len(prompt.answers)) for prompt in prompts]
        axes = text_encoding.AXES | {"places": "P", "targets": "P"}
        outputs = self.model.outputs(self._step, examples, axes, {}, console=console)
        for (number, chosen), example, output in zip(owners, examples, outputs, strict=True):
            of_tokens = np.asarray(output["log_probs"][: len(example["places"])], np.float64)
            found[number][chosen] = of_tokens.reshape(len(chosen), -1).sum(axis=1)
        return found

    def _example(self, prompt: EncodedPrompt, hidden: int, answers: Sequence[Sequence[int]]) -> Example:
        example = self._layout.join([*prompt.tokens, *[self.model.mask] * hidden, *prompt.after])
        first = len(self._layout.before) + len(prompt.tokens)
        places = np.tile(np.arange(first, first + hidden, dtype=np.int32), len(answers))
        return example | {"places": places, "targets": np.concatenate(answers).astype(np.int32)}

    def _tokens(self, before_text: str, before: Sequence[int], text: str) -> list[int]:
        whole = self.model.tokenizer.encode(f"{before_text} {text.strip()}")
        if whole[: len(before)] == list(before):
            return whole[len(before) :]
        return self.model.tokenizer.encode(text)

    @functools.cached_property
    def _layout(self) -> text_encoding.Layout:
        return text_encoding.Layout.of(self.model.tokenizer, self.model.config.model.architecture)

    @functools.cached_property
    def _step(self) -> Step:
        def step(params: Params, batch: Batch) -> dict[str, Array]:
            variables = {"params": params}
            hidden_BTD = self.model.model.apply(variables, batch["tokens"], batch["segments"], method=EncoderLM.hidden)
            hidden_BPD = jnp.take_along_axis(hidden_BTD, batch["places"][:, :, None], axis=1)
            logits_BPV = self.model.model.apply(variables, hidden_BPD, method=EncoderLM.logits)
            is_token_V = jnp.arange(logits_BPV.shape[-1]) < self.model.tokenizer.vocab_size
            log_probs_BPV = jax.nn.log_softmax(jnp.where(is_token_V[None, None], logits_BPV, -jnp.inf))
            return {"log_probs": jnp.take_along_axis(log_probs_BPV, batch["targets"][:, :, None], axis=2)[:, :, 0]}

        return jax.jit(step)


def _sizes_and_classes(prompt: Prompt) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Bytes and classes of the answers."""
    sizes = tuple(max(1, len(text.strip().encode())) for _, text in prompt.numbered_answers)
    return sizes, tuple(number for number, _ in prompt.numbered_answers)
