"""Models that generate text: decoders and encoder-decoders, pretrained or fine-tuned."""

import bisect
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from lm.decoding.beam_search import BeamSearchConfig, search
from lm.decoding.continuation import Continuation
from lm.decoding.progress import Choice
from lm.decoding.sample import Held, Writing, generate
from lm.decoding.sampling import SamplingConfig
from lm.decoding.scores import ScoredContinuation, continuation_log_probs
from lm.decoding.step import check_writer
from lm.decoding.stop_strings import before_stop
from lm.errors import UserError
from lm.inference.model_in_use import ModelInUse, as_list
from lm.inference.special_tokens import encode_marked
from lm.inference.streaming import TextStream
from lm.inference.task_model import Predicted, TaskModel
from lm.models.unrolled import unrolled
from lm.objectives.registry import special_tokens
from lm.runs.config import PretrainConfig
from lm.tasks.supervised import Row
from lm.types import Params

How = SamplingConfig | BeamSearchConfig


@dataclasses.dataclass(frozen=True)
class GeneratedText(Continuation):
    """A generated text.

    Attributes:
      prompt: what the model read.
      text: the decoded tokens, without what follows the first stop string.
      continues: whether the text continues the prompt; otherwise it is a text of its own.
      stopped_by: the stop string at which it ends; the last of its tokens completes this string. None: no such string.
    """

    prompt: str
    text: str
    continues: bool
    stopped_by: str | None = None

    @property
    def confidence(self) -> float:
        """The geometric mean of the tokens' probabilities (Malinin & Gales 2021), calibrated ones if there are any.

        NaN without tokens.
        """
        log_probs = self.log_probs if self.calibrated_log_probs is None else self.calibrated_log_probs
        return float(np.exp(np.mean(log_probs, dtype=np.float64))) if log_probs.size else float("nan")

    def to_json(self) -> dict[str, Any]:
        """By the names that evaluations use."""
        return {"predicted": self.text, "confidence": self.confidence}


class LanguageModel(ModelInUse):
    """Generates texts and scores given ones.

    A pretrained decoder continues its prompts, which start documents. A pretrained encoder-decoder reads a prompt with
    the special tokens it was trained on, such as "the <extra_id_0> sat" or "the [MASK] sat", and generates its output.
    """

    kind: ClassVar[str] = "a language model"
    uses: ClassVar[tuple[str, ...]] = ("generate", "log_probs", "embed")

    def generate(self, prompts: Sequence[str], how: How | None = None) -> list[GeneratedText]:
        """Generates a text for each prompt.

        A calibrator is applied to the model's probabilities first, so it affects what is generated.

        Args:
          prompts: texts.
          how: sampling (greedy at temperature 0) or beam search; None: as in the evaluation of the run's task, and
            sampling for a pretrained model. With several samples per prompt, those of the first prompt come first.

        Raises:
          UserError: for a prompt that the model cannot read.
        """
        prompts = as_list(prompts, "prompts")
        return self.generate_tokens(prompts, self.prompt_tokens(prompts), how or self.search)

    def generate_tokens(self, prompts: Sequence[str], tokens: Sequence[Sequence[int]], how: How) -> list[GeneratedText]:
        """As `generate`, for prompts that the model reads as `tokens`.

        Raises:
          UserError: for a prompt that is too long for an encoder-decoder.
        """
        if not isinstance(how, SamplingConfig):
            found = search(*self._unrolled, tokens, how, **self._vocabulary)
            return [self._written(prompt, each) for prompt, each in zip(prompts, found, strict=True)]
        halt = (lambda _, new: self._first_stop(new, how.stop) is not None) if how.stop else None
        found = generate(*self._unrolled, tokens, how, **self._vocabulary, halt=halt)
        repeated = [prompt for prompt in prompts for _ in range(how.samples)]
        return [self._written(prompt, each, how.stop) for prompt, each in zip(repeated, found, strict=True)]

    def stream(self, prompt: str, how: SamplingConfig | None = None) -> TextStream:
        """The text that `generate` would return for this prompt, in pieces while it is written.

        Args:
          prompt: a text.
          how: sampling; None: the default of `SamplingConfig`. There is one sample.

        Raises:
          UserError: for a prompt that the model cannot read.
        """
        return self.stream_tokens(self.prompt_tokens([prompt])[0], how or SamplingConfig())

    def stream_tokens(self, tokens: Sequence[int], how: SamplingConfig, held: Held | None = None) -> TextStream:
        """As `stream`, for the tokens that the model reads.

        Args:
          tokens: the prompt.
          how: sampling.
          held: what a decoder has read before, which is used up; only tokens that differ from it are read.

        Raises:
          UserError: for a prompt that the model cannot read.
        """
        model, params = self._unrolled
        known = self._vocabulary
        check_writer(model, [tokens], known["start"])
        choice = Choice(how.distribution, known["ends"], known["vocab_size"], known["calibrator"])
        single = dataclasses.replace(how, samples=1)
        writing = Writing(model, params, [tokens], single, choice, known["start"], held=held)
        return TextStream(writing, self._decode, known["ends"], how.stop)

    def log_probs(
        self, prompts: Sequence[str], continuations: Sequence[str | Sequence[int]], finished: bool = False
    ) -> list[ScoredContinuation]:
        """The log-probability of each continuation given its prompt, token by token.

        What prompts have in common at their beginning, such as a task's examples, is read once.

        Args:
          prompts: texts.
          continuations: equally many texts or lists of token ids. A pretrained decoder's prompt and text are encoded
            together, as they would be in a document, unless that changes the tokens of the prompt; then, and for other
            models, the text is encoded separately.
          finished: whether each text ends there, so that its end-of-text token is scored too.

        Returns:
          A `ScoredContinuation` for each pair: the log-probability of each token and of all, and whether greedy
          decoding would give it.

        Raises:
          UserError: for a pair that is too long for the model.
        """
        prompts, continuations = as_list(prompts, "prompts"), as_list(continuations, "continuations")
        if len(prompts) != len(continuations):
            raise UserError(
                f"there are {len(prompts)} prompts and {len(continuations)} continuations: give equally many"
            )
        if not prompts:
            return []
        return self.token_log_probs(*self.pair_tokens(prompts, continuations, finished))

    def token_log_probs(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], batch_size: int = 0
    ) -> list[ScoredContinuation]:
        """As `log_probs`, for the tokens that the model reads and those of the continuations.

        Args:
          prompts: token ids, as `prompt_tokens` gives them.
          continuations: equally many lists of token ids.
          batch_size: rows in a forward pass; 0: as in the run.

        Raises:
          UserError: for a pair that is too long for the model.
        """
        size = batch_size or self._batch_size(max(1, len(prompts)))
        return continuation_log_probs(
            self.model, self.params, prompts, continuations, **self._vocabulary, batch_size=size
        )

    def pair_tokens(
        self, prompts: Sequence[str], continuations: Sequence[str | Sequence[int]], finished: bool = False
    ) -> tuple[list[list[int]], list[list[int]]]:
        """The token ids that the model reads for each prompt, and those of its continuation, as `log_probs` has them.

        Raises:
          UserError: for a prompt that it cannot read.
        """
        read = self.prompt_tokens(prompts)
        return read, self._target_tokens(prompts, read, continuations, finished)

    @property
    def continues(self) -> bool:
        """Whether what it writes continues its prompt; otherwise it is a text of its own."""
        return self.config.model.architecture == "decoder"

    @property
    def search(self) -> How:
        """The default settings of generation."""
        return SamplingConfig()

    def prompt_tokens(self, prompts: Sequence[str]) -> list[list[int]]:
        """The token ids that the model reads for each prompt.

        Raises:
          UserError: for a prompt that it cannot read.
        """
        end_of_text = self.tokenizer.end_of_text
        if self.config.model.architecture == "encoder_decoder":
            if end_of_text is None:
                raise UserError(
                    "an encoder-decoder reads an end-of-text token after its input; this tokenizer has none"
                )
            marked = [encode_marked(self.tokenizer, prompt, self.marks) for prompt in prompts]
            return [self.tokenizer.with_frame(ids) for ids in marked]
        encoded = [self.tokenizer.with_start(ids) for ids in self.tokenizer.encode_batch(prompts)]
        if not all(encoded):
            raise UserError("an empty prompt needs a tokenizer with an end-of-text token: give some text to continue")
        return encoded

    def _target_tokens(
        self,
        prompts: Sequence[str],
        read: Sequence[Sequence[int]],
        continuations: Sequence[str | Sequence[int]],
        finished: bool,
    ) -> list[list[int]]:
        """The tokens of each continuation of a prompt that is read as `read`."""
        end = [] if self.tokenizer.end_of_text is None else [self.tokenizer.end_of_text]
        if finished and not end:
            raise UserError("finished=True needs a tokenizer with an end-of-text token: leave it out")
        targets = []
        for prompt, tokens, continuation in zip(prompts, read, continuations, strict=True):
            if isinstance(continuation, str):
                targets.append(self._continued(prompt, tokens, continuation) + (end if finished else []))
            else:
                targets.append([int(token) for token in continuation])
        return targets

    def _continued(self, prompt: str, tokens: Sequence[int], text: str) -> list[int]:
        """The tokens of a text after a prompt, which is read as `tokens`."""
        whole = self.prompt_tokens([prompt + text])[0]
        if whole[: len(tokens)] == tokens:
            return whole[len(tokens) :]
        return encode_marked(self.tokenizer, text, self.marks)

    def _text(self, continuation: Continuation) -> str:
        """Without the token that ends it."""
        return self._decode(continuation.tokens[: -1 if continuation.finished else None].tolist())

    def _written(self, prompt: str, continuation: Continuation, stop: Sequence[str] = ()) -> GeneratedText:
        """The text of a continuation, which ends at the first stop string."""
        found = self._first_stop(continuation.tokens.tolist(), stop)
        if found is None:
            text, name = self._text(continuation), None
        else:
            text, name, count = found
            continuation = continuation.first(count)
        fields = vars(continuation)
        return GeneratedText(**fields, prompt=prompt, text=text, continues=self.continues, stopped_by=name)

    def _first_stop(self, tokens: Sequence[int], stop: Sequence[str]) -> tuple[str, str, int] | None:
        """The text before the first stop string, that string, and the number of tokens that it takes to complete it.

        None if there is no stop string in the text of these tokens.
        """
        if not stop or before_stop(self._decode(tokens), stop) is None:
            return None

        def has_stop(count: int) -> bool:
            return before_stop(self._decode(tokens[:count]), stop) is not None

        # A longer text has a stop string if a shorter one has.
        count = bisect.bisect_left(range(len(tokens)), True, key=has_stop)
        found = before_stop(self._decode(tokens[:count]), stop)
        return None if found is None else (*found, count)

    def _decode(self, tokens: Sequence[int]) -> str:
        """Special tokens that the model learned to generate stay."""
        return self.tokenizer.decode(tokens, skip_special_tokens=not self.marks)

    @functools.cached_property
    def _unrolled(self) -> tuple[Any, Params]:
        """The network and its parameters as decoding needs them."""
        return unrolled(self.model, self.params)

    @property
    def marks(self) -> tuple[str, ...]:
        """Special tokens that texts may contain."""
        if not isinstance(self.config, PretrainConfig):
            return ()
        if self.config.objective.name == "none":  # T5's, which is imported without its objective
            return tuple(name for name in self.tokenizer.special_names if name.startswith("<extra_id_"))
        return special_tokens(self.config.objective)

    @property
    def _vocabulary(self) -> dict[str, Any]:
        """What every way to write needs to know of tokens and their probabilities."""
        return {
            "ends": self.tokenizer.ends,
            "start": self.tokenizer.start_of_output,
            "vocab_size": self.tokenizer.vocab_size,
            "calibrator": None if self.calibrator is None else self.calibrator.apply,
        }


class TaskLanguageModel(TaskModel, LanguageModel):
    """A model fine-tuned to complete prompts or to turn one text into another."""

    kind: ClassVar[str] = "a fine-tuned language model"
    uses: ClassVar[tuple[str, ...]] = ("predict", "generate", "log_probs", "embed")

    def predict(self, texts: Sequence[str], truncate: bool | None = None) -> list[GeneratedText]:
        """The text that the model generates for each source or prompt, as in the evaluation of the run's task.

        Args:
          texts: sources or prompts.
          truncate: truncate texts that are too long for the model; None: as in training.

        Raises:
          UserError: for a text that is too long.
        """
        return self.predict_rows(self._rows("text", **{self.task.text_columns[0]: texts}), truncate).predictions

    def predict_rows(self, rows: Sequence[Row], truncate: bool | None = None) -> Predicted:
        """`GeneratedText`s of rows with sources or prompts."""
        task = self._task(truncate)
        texts = [row[task.text_columns[0]] for row in rows]
        found: list[GeneratedText] = []
        size = self.config.training.evaluation_batch_size or self.config.training.batch_size
        prompts = task.prompts(rows)
        for first in range(0, len(rows), size):
            found += self.generate_tokens(texts[first : first + size], prompts[first : first + size], self.search)
        return Predicted(found, len(task.long_sources(rows)))

    @property
    def continues(self) -> bool:
        """Whether its targets continue their sources."""
        return self.task.continues

    @property
    def search(self) -> How:
        """The settings of the task's evaluation."""
        return self.task.search

    def _continued(self, prompt: str, tokens: Sequence[int], text: str) -> list[int]:
        """In training a target is encoded by itself."""
        return encode_marked(self.tokenizer, text, self.marks)

    def prompt_tokens(self, prompts: Sequence[str]) -> list[list[int]]:
        """The token ids that the model reads for each prompt, which is cleaned like the run's rows.

        Raises:
          UserError: for a prompt that is too long.
        """
        return self.task.prompts(self._rows("prompt", **{self.task.text_columns[0]: prompts}))
