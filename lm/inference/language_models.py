"""Models that generate text: decoders and encoder-decoders, pretrained or fine-tuned."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from lm.decoding.beam_search import BeamSearchConfig, search
from lm.decoding.continuation import Continuation
from lm.decoding.sample import generate
from lm.decoding.sampling import SamplingConfig
from lm.decoding.scores import continuation_log_probs
from lm.errors import UserError
from lm.inference.model_in_use import ModelInUse, as_list
from lm.inference.special_tokens import encode_marked
from lm.inference.task_model import Predicted, TaskModel
from lm.objectives.registry import special_tokens
from lm.runs.config import PretrainConfig
from lm.tasks.supervised import Row

How = SamplingConfig | BeamSearchConfig


@dataclasses.dataclass(frozen=True)
class GeneratedText(Continuation):
    """A generated text.

    Attributes:
      prompt: what the model read.
      text: the decoded tokens.
      continues: whether the text continues the prompt; otherwise it is a text of its own.
    """

    prompt: str
    text: str
    continues: bool

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
        how = how or self.search
        samples = how.samples if isinstance(how, SamplingConfig) else 1
        prompts = [prompt for prompt in as_list(prompts, "prompts") for _ in range(samples)]
        return self._generated(prompts, self.prompt_tokens(prompts), how)

    def _generated(self, prompts: Sequence[str], tokens: Sequence[Sequence[int]], how: How) -> list[GeneratedText]:
        """A text for each prompt, which the model reads as `tokens`."""
        if not prompts:
            return []
        read = self.model, self.params, tokens
        if isinstance(how, SamplingConfig):
            found = generate(*read, how, **self._vocabulary)
        else:
            found = search(*read, how, **self._vocabulary)
        return [
            GeneratedText(**vars(each), prompt=prompt, text=self._text(each), continues=self.continues)
            for prompt, each in zip(prompts, found, strict=True)
        ]

    def log_probs(
        self, prompts: Sequence[str], continuations: Sequence[str | Sequence[int]], finished: bool = False
    ) -> list[Continuation]:
        """The log-probability of each continuation given its prompt, token by token.

        Args:
          prompts: texts.
          continuations: equally many texts or lists of token ids. A text is encoded separately from its prompt.
          finished: whether each text ends there, so that its end-of-text token is scored too.

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
        targets = [self._target_tokens(each, finished) for each in continuations]
        pairs = self.prompt_tokens(prompts), targets
        return continuation_log_probs(
            self.model, self.params, *pairs, **self._vocabulary, batch_size=self._batch_size(len(prompts))
        )

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
            marked = [encode_marked(self.tokenizer, prompt, self._marks) for prompt in prompts]
            return [self.tokenizer.with_frame(ids) for ids in marked]
        encoded = [self.tokenizer.with_start(ids) for ids in self.tokenizer.encode_batch(prompts)]
        if not all(encoded):
            raise UserError("an empty prompt needs a tokenizer with an end-of-text token: give some text to continue")
        return encoded

    def _target_tokens(self, text: str | Sequence[int], finished: bool) -> list[int]:
        if not isinstance(text, str):
            return [int(token) for token in text]
        encoded, end_of_text = encode_marked(self.tokenizer, text, self._marks), self.tokenizer.end_of_text
        if not finished:
            return encoded
        if end_of_text is None:
            raise UserError("finished=True needs a tokenizer with an end-of-text token: leave it out")
        return [*encoded, end_of_text]

    def _text(self, continuation: Continuation) -> str:
        """Without the end-of-text token; special tokens that the model learned to generate stay."""
        tokens = continuation.tokens[: -1 if continuation.finished else None]
        return self.tokenizer.decode(tokens.tolist(), skip_special_tokens=not self._marks)

    @property
    def _marks(self) -> tuple[str, ...]:
        """Special tokens that texts may contain."""
        return special_tokens(self.config.objective) if isinstance(self.config, PretrainConfig) else ()

    @property
    def _vocabulary(self) -> dict[str, Any]:
        """What every way to write needs to know of tokens and their probabilities."""
        return {
            "end_of_text": self.tokenizer.end_of_text,
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
            found += self._generated(texts[first : first + size], prompts[first : first + size], self.search)
        return Predicted(found, len(task.long_sources(rows)))

    @property
    def continues(self) -> bool:
        """Whether its targets continue their sources."""
        return self.task.continues

    @property
    def search(self) -> How:
        """The settings of the task's evaluation."""
        return self.task.search

    def prompt_tokens(self, prompts: Sequence[str]) -> list[list[int]]:
        """The token ids that the model reads for each prompt, which is cleaned like the run's rows.

        Raises:
          UserError: for a prompt that is too long.
        """
        return self.task.prompts(self._rows("prompt", **{self.task.text_columns[0]: prompts}))
