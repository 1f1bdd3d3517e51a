"""Extractive question answering: the span of a context that answers a question, or none (Rajpurkar et al. 2016, 2018).

A context longer than the longest sequence is read in overlapping windows, following Devlin et al. (2019); each
window is a separate example. In a window without the answer, start and end are the no-answer token: the first of the
sequence, or the last if the model reads from left to right, so that it has seen the question and the window.

Axes: B batch (windows), T positions (tokens), S tokens of a context, A lengths of answers in tokens.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jax import Array
from jax.sharding import Mesh
from scipy import special

from lm.calibration.predictions import JUDGEMENTS, Predictions
from lm.data.tokenizers import Tokenizer
from lm.errors import UserError
from lm.evaluation.spans import span_metrics
from lm.evaluation.token_statistics import token_statistics
from lm.models.heads import SpanExtractor
from lm.modules.config import ModelConfig
from lm.tasks import text_encoding
from lm.tasks.supervised import Columns, Encoded, Example, Results, Row, TaskConfig, has_column
from lm.types import Batch, Params

_LOWEST_LOG = -100.0  # for a probability that is 0 in float64: calibration needs finite logits

Window = tuple[Example, dict[str, Any]]  # an example and its prediction


class Tokens(NamedTuple):
    """Tokens of a context.

    Attributes:
      ids: of the tokens.
      starts_S: the first character of each.
      ends_S: the character after its last; for a token of only white space, its first.
    """

    ids: list[int]
    starts_S: np.ndarray
    ends_S: np.ndarray


class Answer(NamedTuple):
    """The answer chosen for a question.

    Attributes:
      text: "" for no answer.
      log_p: log-probability of the choice among all candidates.
      log_not_p: log(1 - p), exact for p near 1.
    """

    text: str
    log_p: float
    log_not_p: float


@dataclasses.dataclass(frozen=True)
class SpanExtraction:
    """The task, as in `lm.tasks.supervised.SupervisedTask`.

    An example is a window. It holds `tokens`, `segments`, `types` and `allowed` (1 where answers may start or end: the
    window's part of the context, and the no-answer token), each [T], and the numbers `start` and `end` (the answer's
    first and last position), `no_answer` (the position of that token), `row` (the row it is a window of) and `first`
    (the index of its first context token).

    Attributes:
      model: the network.
      config: of the task. Windows overlap by `stride` tokens, so that every answer of at most `stride + 1` tokens lies
        entirely in some window.
      tokenizer: for the texts.
    """

    settings: ClassVar[tuple[str, ...]] = ("truncate", "stride", "max_answer_length", "unanswerable")
    unit: ClassVar[str] = "examples"
    axes: ClassVar[Mapping[str, str]] = text_encoding.AXES | {"allowed": "T"}
    padding: ClassVar[Mapping[str, int]] = {}

    model: SpanExtractor
    config: TaskConfig
    tokenizer: Tokenizer

    @classmethod
    def from_config(
        cls,
        config: TaskConfig,
        model: ModelConfig,
        tokenizer: Tokenizer,
        mesh: Mesh | None,
        classes: tuple[str, ...],
        train_rows: Sequence[Row],
    ) -> "SpanExtraction":
        """The task with its model, as in `lm.tasks.supervised.SupervisedTask`."""
        return cls(SpanExtractor(model, mesh), config, tokenizer)

    @classmethod
    def columns(cls, config: TaskConfig) -> Columns:
        """`context`, `question`, `answers` and perhaps `id`."""
        return Columns(("context", "question", "answers"), ("id",))

    @classmethod
    def texts(cls, config: TaskConfig, rows: Sequence[Row]) -> list[str]:
        """The contexts and the questions."""
        return [row[name] for row in rows for name in ("context", "question")]

    @classmethod
    def labels(cls, rows: Sequence[Row]) -> None:
        """None: there are no classes."""
        return

    def encode(self, rows: Sequence[Row]) -> Encoded:
        """The windows of each row. The target is the first of a row's answers; rows without answers have no target.

        Notes name the answers that no window holds, or that the model cannot give because they are too long.

        Raises:
          UserError: if a question leaves too little room for its context, a context has no words, or a question has no
            answer although the config says that all have one.
        """
        layout = self._layout()
        room = layout.room(self.model.config, pair=True)
        contexts = self._contexts(rows)
        questions = self.tokenizer.encode_batch([row["question"] for row in rows])
        self._check(rows, questions, room)
        examples, unreachable = [], []
        for number, (row, question) in enumerate(zip(rows, questions, strict=True)):
            context, question = contexts[row["context"]], question[: room // 2]
            size = room - len(question)
            answer = answer_tokens(context, row["answers"][0]) if row.get("answers") else None
            starts = self._window_starts(len(context.ids), size, row)
            for first in starts:
                window = self._window(layout, question, context.ids[first : first + size], first, answer)
                examples.append(window | {"row": np.array(number, np.int32)})
            if row.get("answers"):
                unreachable.append((row["place"], _obstacle(answer, starts, size, self.config)))
        if not has_column(rows, "answers"):
            examples = [{k: v for k, v in example.items() if k not in ("start", "end")} for example in examples]
        cut = sum(len(question) > room // 2 for question in questions)
        return Encoded(examples, cut, _notes_of_obstacles(unreachable))

    def init(self, key: Array) -> Params:
        """Random parameters."""
        nothing = np.zeros((1, 1), np.int32)
        return self.model.init(key, nothing, nothing, nothing, nothing > 0)["params"]

    def loss(self, params: Params, batch: Batch, dropout_key: Array | None) -> tuple[Array, dict[str, Array]]:
        """The mean of the start's and the end's negative log-likelihood, summed over windows, and sums by name.

        The sums are `weight` (of windows), `loss`, `objective` (the same) and `accuracy` (of both start and end).
        """
        logits = self._logits(params, batch, dropout_key)
        start, end = (token_statistics(logits[name], batch[name]) for name in ("start", "end"))
        weights_B = batch["row_weights"]
        total = (weights_B * (start.nll + end.nll) / 2).sum()
        sums = {
            "weight": weights_B.sum(),
            "loss": total,
            "objective": total,
            "accuracy": (weights_B * start.correct * end.correct).sum(),
        }
        return total, sums

    def predict(self, params: Params, batch: Batch) -> dict[str, Array]:
        """Logits of the answer's start and end, `start` and `end`, each [B, T]."""
        return self._logits(params, batch, None)

    def results(self, rows: Sequence[Row], examples: Sequence[Example], outputs: Sequence[dict[str, Any]]) -> Results:
        """Exact match and F1 of the answers, and their confidence.

        The score of a span is the sum of its start's and its end's logit, in the window where it is highest; that of no
        answer is the sum of the no-answer token's two logits, in the window where it is lowest (Devlin et al. 2019),
        since every window must lack the answer. The answer is the candidate with the highest score among all spans up
        to `max_answer_length` and, if questions may be unanswerable, no answer. Its confidence is its share of a
        softmax over the scores of these candidates.

        See `answer_results`.
        """
        return answer_results(rows, self.answers(rows, examples, outputs))

    def answers(
        self, rows: Sequence[Row], examples: Sequence[Example], outputs: Sequence[dict[str, Any]]
    ) -> list[Answer]:
        """The answer to each row's question and its probability. Arguments as in `results`."""
        contexts = self._contexts(rows)
        windows: list[list[Window]] = [[] for _ in rows]
        for example, output in zip(examples, outputs, strict=True):
            windows[int(example["row"])].append((example, output))
        return [self._answer(row["context"], contexts, of_row) for row, of_row in zip(rows, windows, strict=True)]

    def _logits(self, params: Params, batch: Batch, dropout_key: Array | None) -> dict[str, Array]:
        rngs = {} if dropout_key is None else {"dropout": dropout_key}
        inputs = (batch["tokens"], batch["segments"], batch["types"], batch["allowed"] > 0)
        start_BT, end_BT = self.model.apply({"params": params}, *inputs, rngs=rngs)
        return {"start": start_BT, "end": end_BT}

    def _contexts(self, rows: Sequence[Row]) -> dict[str, Tokens]:
        """The tokens of each context; many questions may share one."""
        contexts = {}
        for row in rows:
            text = row["context"]
            if text in contexts:
                continue
            ids, places = self.tokenizer.encode_with_offsets(text)
            starts_S, ends_S = np.array(places, np.int64).reshape(-1, 2).T
            if not (starts_S < ends_S).any():
                raise UserError(f"{row['place']}: the context has no words: remove the row")
            contexts[text] = Tokens(ids, starts_S, ends_S)
        return contexts

    def _check(self, rows: Sequence[Row], questions: Sequence[Sequence[int]], room: int) -> None:
        for row, question in zip(rows, questions, strict=True):
            if "answers" in row and not row["answers"] and not self.config.unanswerable:
                raise UserError(f"{row['place']} has no answer: set config.task.unanswerable=True to allow this")
            if len(question) > room // 2 and not self.config.truncate:
                raise UserError(
                    f"{row['place']}: the question has {len(question)} tokens, more than half of what fits into "
                    f"{self.model.config.length_setting}={self.model.config.size_of_sequence}: raise it, or set "
                    "config.task.truncate=True to truncate such questions"
                )

    def _layout(self) -> text_encoding.Layout:
        layout = text_encoding.Layout.of(self.tokenizer, self.model.config.architecture)
        # A model that reads from left to right has seen everything only at the end, so the no-answer
        # token must come last.
        if not self._reads_forward:
            return layout
        last = layout.before if self.tokenizer.frame is None else (self.tokenizer.required_end_of_text,)
        return dataclasses.replace(layout, after=last)

    @property
    def _reads_forward(self) -> bool:
        return self.model.config.architecture == "decoder"

    def _window_starts(self, length: int, size: int, row: Row) -> Sequence[int]:
        """The first token of each window of `size` tokens over a context of `length`."""
        if length <= size:
            return [0]
        if size <= self.config.stride:
            raise UserError(
                f"{row['place']}: config.task.stride={self.config.stride} must be less than the number of context "
                f"tokens in a window, here {size}: lower it, or raise {self.model.config.length_setting}"
            )
        return range(0, length - self.config.stride, size - self.config.stride)

    def _window(
        self,
        layout: text_encoding.Layout,
        question: Sequence[int],
        ids: Sequence[int],
        first: int,
        answer: tuple[int, int] | None,
    ) -> Example:
        """The example of a question and the context's tokens `ids`, starting at index `first`."""
        example = layout.join(question, ids)
        begin = len(layout.before) + len(question) + len(layout.between)
        no_answer = example["tokens"].size - 1 if self._reads_forward else 0
        allowed = np.zeros_like(example["tokens"])
        allowed[[no_answer, *range(begin, begin + len(ids))]] = 1
        start = end = no_answer
        if answer is not None and first <= answer[0] and answer[1] < first + len(ids):
            start, end = (begin + token - first for token in answer)
        numbers = {"start": start, "end": end, "no_answer": no_answer, "first": first}
        return example | {"allowed": allowed} | {name: np.array(number, np.int32) for name, number in numbers.items()}

    def _answer(self, text: str, contexts: Mapping[str, Tokens], windows: Sequence[Window]) -> Answer:
        """The best candidate of the windows of a question about the context `text`."""
        context = contexts[text]
        scores_SA = span_scores(windows, context, self.config.max_answer_length)
        candidates = scores_SA.ravel()
        if self.config.unanswerable:
            candidates = np.append(candidates, no_answer_score(windows))
        best = int(candidates.argmax())
        everything = special.logsumexp(candidates)
        others = special.logsumexp(np.delete(candidates, best)) if candidates.size > 1 else -np.inf
        log_p, log_not_p = candidates[best] - everything, max(others - everything, _LOWEST_LOG)
        if best == scores_SA.size:
            return Answer("", log_p, log_not_p)
        first, longer = divmod(best, self.config.max_answer_length)
        return Answer(text[context.starts_S[first] : context.ends_S[first + longer]], log_p, log_not_p)


def answer_results(rows: Sequence[Row], answers: Sequence[Answer]) -> Results:
    """Exact match and F1 of answers, and predictions that judge them: how probable it is that each is right.

    Right means an exact match. Questions about one context form a cluster, and one item of the metrics.

    Args:
      rows: with `answers`.
      answers: what was answered to each.
    """
    gold = [[answer["text"] for answer in row["answers"]] for row in rows]
    metrics = span_metrics([answer.text for answer in answers], gold)
    clusters_N = np.array([_digest(row["context"]) for row in rows])
    predictions = Predictions(
        logits=np.array([(answer.log_not_p, answer.log_p) for answer in answers], np.float32),
        labels_N=metrics["exact_match"].statistics_NK[:, 0].astype(np.int32),
        ids_N=np.array([row["place"] for row in rows]),
        clusters_N=clusters_N,
        class_names=JUDGEMENTS,
    )
    records = [_record(*each) for each in zip(rows, answers, gold, strict=True)]
    return Results({name: metric.in_clusters(clusters_N) for name, metric in metrics.items()}, records, predictions)


def _obstacle(answer: tuple[int, int] | None, starts: Sequence[int], size: int, config: TaskConfig) -> str:
    """Why an answer, from its first to its last token, cannot be learned or given: one of `_OBSTACLES`, or ""."""
    if answer is None:
        return "no tokens"
    if not any(first <= answer[0] and answer[1] < first + size for first in starts):
        return "no window"
    return "long" if answer[1] - answer[0] >= config.max_answer_length else ""


_OBSTACLES = {
    "no tokens": "have no tokens, so their windows count as having no answer: fix these rows",
    "no window": "fit into no window, so their windows count as having no answer: raise config.task.stride to at least "
    "the number of tokens of the longest answer, or config.model.sequence_length (default: max_length)",
    "long": "have more tokens than config.task.max_answer_length, so they are never given: raise it",
}


def _notes_of_obstacles(found: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """A line for each kind of obstacle among (place, obstacle)."""
    notes = []
    for obstacle, meaning in _OBSTACLES.items():
        places = [place for place, each in found if each == obstacle]
        if places:
            notes.append(f"{len(places):,} of {len(found):,} answers (the first: {places[0]}) {meaning}")
    return tuple(notes)


def _digest(text: str) -> str:
    """A name for a context, the same wherever it occurs."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _record(row: Row, answer: Answer, gold: list[str]) -> dict[str, Any]:
    """A human-readable record of a question."""
    return {
        "place": row["place"],
        **({"id": row["id"]} if "id" in row else {}),
        "question": row["question"],
        "predicted": answer.text,
        "answers": gold,
        "confidence": float(np.exp(answer.log_p)),
    }


def answer_tokens(context: Tokens, answer: Mapping[str, Any]) -> tuple[int, int] | None:
    """The first and the last token of an answer, which is `text` at character `start`; None if it has no tokens."""
    first = np.searchsorted(context.ends_S, answer["start"], side="right")
    last = np.searchsorted(context.starts_S, answer["start"] + len(answer["text"]), side="left") - 1
    return (int(first), int(last)) if first <= last else None


def span_scores(windows: Sequence[Window], context: Tokens, max_answer_length: int) -> np.ndarray:
    """Scores of the spans of 1 + a tokens that start at token s, [S, A]; -inf where there is no such span.

    White space alone is not an answer, and answers do not start or end with it.
    """
    tokens = len(context.ids)
    scores_SA = np.full((tokens, max_answer_length), -np.inf)
    for example, output in windows:
        first, inside = int(example["first"]), example["allowed"] > 0
        inside[int(example["no_answer"])] = False
        start_S, end_S = (np.asarray(output[name], np.float64)[: inside.size][inside] for name in ("start", "end"))
        for longer in range(min(max_answer_length, start_S.size)):
            begins = start_S.size - longer
            best_S = scores_SA[first : first + begins, longer]
            np.maximum(best_S, start_S[:begins] + end_S[longer:], out=best_S)
    blank_S = context.starts_S == context.ends_S
    scores_SA[blank_S] = -np.inf
    for longer in range(min(max_answer_length, tokens)):
        scores_SA[: tokens - longer, longer][blank_S[longer:]] = -np.inf
    return scores_SA


def no_answer_score(windows: Sequence[Window]) -> float:
    """The score of no answer over all windows."""
    places = [int(example["no_answer"]) for example, _ in windows]
    outputs = [output for _, output in windows]
    return min(float(output["start"][at] + output["end"][at]) for at, output in zip(places, outputs, strict=True))
