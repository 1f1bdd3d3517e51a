"""A model of ours in EleutherAI's lm-evaluation-harness (the extra `harness`).

import lm_eval
from lm.inference.harness import CalibratedLM
results = lm_eval.simple_evaluate(model=CalibratedLM("runs/mine"), tasks=["hellaswag"])

Importing this module registers the model as `calibrated_lm`; `python -m experiments.harness` does so for the harness's
own command line.
"""

import dataclasses
import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lm.data.chat import Chat
from lm.decoding.continuation import Continuation
from lm.decoding.sampling import SamplingConfig
from lm.errors import UserError
from lm.inference.language_models import LanguageModel
from lm.inference.load import load

try:
    from lm_eval import utils
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
    from tqdm import tqdm
except ImportError as error:
    raise UserError(f"lm-evaluation-harness is not here ({error}): pip install -e '.[harness]'") from error

# Between two updates of the progress bar, and of the harness's cache of results.
_PAIRS_AT_A_TIME, _TEXTS_AT_A_TIME = 256, 64
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")

# What the harness calls a request: the texts, the context's tokens and those of its continuation.
_Request = tuple[tuple[str, str] | None, list[int], list[int]]


@register_model("calibrated_lm")
class CalibratedLM(TemplateLM):
    """A decoder or encoder-decoder as `lm.load` returns it.

    Log-likelihoods are those of `LanguageModel.log_probs`, after the calibrator if there is one. All requests are
    sorted by their contexts, so that what several have in common, such as a question with its options or the examples
    before it, is read once.

    Args:
      path: as for `lm.load`: work directory of a run, "hf:DIRECTORY" or "gguf:FILE"; or a loaded model.
      checkpoint: "best", "last" or a step.
      calibrator: of the model's probabilities; a name or a path.
      dtype: of a published model.
      batch_size: rows in a forward pass; "auto": as in the run.
      max_length: longest context with its continuation, in tokens; longer ones are cut from the left. None: as the
        model.
      max_gen_toks: most tokens of a generated text, where a task does not say.
      max_batch_size: as the harness passes it; without effect.
      device: as the harness passes it; JAX finds its devices itself.

    Raises:
      UserError: if the model cannot be read or writes no text, or for arguments that it does not have.
    """

    def __init__(
        self,
        path: str | LanguageModel = "",
        checkpoint: str | int = "best",
        calibrator: str | None = None,
        dtype: str = "float32",
        batch_size: int | str = "auto",
        max_length: int | None = None,
        max_gen_toks: int = 256,
        max_batch_size: int | None = None,
        device: str | None = None,
        **unknown: Any,
    ):
        super().__init__()
        if unknown:
            known = "path, checkpoint, calibrator, dtype, max_length and max_gen_toks"
            raise UserError(f"model_args: unknown {', '.join(unknown)}; known are {known}")
        if not path:
            raise UserError("model_args: path is missing: name the directory of a run, as in path=runs/mine")
        model = load(path, str(checkpoint), calibrator, dtype=dtype) if isinstance(path, str) else path
        if not isinstance(model, LanguageModel):
            raise UserError(f"model_args: path={path} is {model.kind}; the harness needs a model that writes text")
        longest = model.config.model.max_length
        if max_length is not None and not 2 <= max_length <= longest:
            raise UserError(f"model_args: max_length={max_length} must be from 2 to the model's {longest}")
        self.model = model
        self.backend = "causal" if model.config.model.architecture == "decoder" else "seq2seq"
        self.max_length = max_length or longest
        self.max_gen_toks = max_gen_toks
        self._batch_size = _checked_batch_size(batch_size)

    # --- tokens ---

    @property
    def eot_token_id(self) -> int:
        """The token that ends a document."""
        return self.model.tokenizer.required_end_of_text

    @property
    def prefix_token_id(self) -> int:
        """What a text without context is read after: the token that starts a document."""
        start = self.model.tokenizer.with_start([])
        return start[-1] if start else self.eot_token_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids of a text as the model reads it.

        Args:
          string: a context, perhaps from `apply_chat_template`.
          add_special_tokens: False: the text alone.
        """
        if not self._control_characters.isdisjoint(string):
            return self.model.tokenizer.control_tokens.encode(string)
        return self.model.tokenizer.encode(string) if add_special_tokens is False else self._prompt_tokens(string)

    def _prompt_tokens(self, text: str) -> list[int]:
        return self.model.prompt_tokens([text])[0]

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """As the harness has it, white space that ends the context belongs to the continuation.

        A continuation whose first characters would merge with the context's last ones is encoded by itself; the
        harness's own models lose its first token then.
        """
        stripped = context.rstrip()
        continuation = context[len(stripped) :] + continuation
        if not stripped:
            return [self.prefix_token_id], self.tok_encode(continuation, add_special_tokens=False)
        if self._control_characters.isdisjoint(stripped):
            read, targets = self.model.pair_tokens([stripped], [continuation])
            return read[0], targets[0]
        control = self.model.tokenizer.control_tokens
        tokens, whole = (control.encode(text) for text in (stripped, stripped + control.checked(continuation)))
        is_kept = whole[: len(tokens)] == tokens
        return tokens, whole[len(tokens) :] if is_kept else self.model.tokenizer.encode(continuation)

    # --- log-likelihoods ---

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """The log-probability of each continuation given its context, in nats, and whether it is the greedy one."""
        pairs = [self._encode_pair(*request.args) for request in requests]
        encoded = [(request.args, *pair) for request, pair in zip(requests, pairs, strict=True)]
        return self._loglikelihood_tokens(encoded, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(
        self, requests: Sequence[_Request], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        contexts = self._cut([context for _, context, _ in requests], [len(targets) for *_, targets in requests])
        found: dict[int, tuple[float, bool]] = {}
        with tqdm(total=len(requests), desc="log-likelihoods", disable=disable_tqdm) as bar:
            for numbers in _whole_contexts(contexts):
                targets = [requests[number][2] for number in numbers]
                scored = self.model.token_log_probs([contexts[number] for number in numbers], targets, self._batch_size)
                for number, each in zip(numbers, scored, strict=True):
                    found[number] = (_total(each), each.greedy)
                    if (texts := requests[number][0]) is not None:
                        self.cache_hook.add_partial("loglikelihood", texts, found[number])
                bar.update(len(numbers))
        return [found[number] for number in range(len(requests))]

    def _cut(self, contexts: Sequence[list[int]], lengths: Sequence[int]) -> list[list[int]]:
        """The ends of contexts that would be too long with continuations of these lengths."""
        is_decoder = self.backend == "causal"
        rooms = [self.max_length + 1 - length if is_decoder else self.max_length for length in lengths]
        cut = [context[-max(room, 1) :] for context, room in zip(contexts, rooms, strict=True)]
        self._tell_cut(sum(map(len, contexts)) - sum(map(len, cut)))
        return cut

    def _tell_cut(self, tokens: int) -> None:
        if tokens:
            _LOGGER.warning("contexts longer than %d tokens lost their beginnings, %d tokens", self.max_length, tokens)

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each whole text, in nats.

        Each token is scored once, in windows of `max_length` as the harness makes them: the first begins after the
        token that starts a document, others after one token of context, and the last one is as long as the others.
        """
        if self.backend != "causal":
            raise UserError("loglikelihood_rolling needs a decoder; an encoder-decoder has no probability of a text")
        windows: list[_Request] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0], add_special_tokens=False)
            rolled = utils.get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1)
            of_text = [(None, *utils.make_disjoint_window(window)) for window in rolled]
            windows += of_text
            owners += [number] * len(of_text)
        totals = [0.0] * len(requests)
        for number, (log_prob, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            totals[number] += log_prob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    # --- texts ---

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """The text that follows each context, up to the first stop string; greedy unless the task samples."""
        by_settings: dict[SamplingConfig, list[int]] = {}
        for number, request in enumerate(requests):
            by_settings.setdefault(self._settings(request.args[1]), []).append(number)
        found: dict[int, str] = {}
        with tqdm(total=len(requests), desc="texts", disable=disable_tqdm) as bar:
            for how, numbers in by_settings.items():
                for first in range(0, len(numbers), _TEXTS_AT_A_TIME):
                    some = numbers[first : first + _TEXTS_AT_A_TIME]
                    # A request that is repeated gets other samples, in another part too.
                    texts = self._texts([requests[number] for number in some], dataclasses.replace(how, seed=first))
                    found |= zip(some, texts, strict=True)
                    bar.update(len(some))
        return [found[number] for number in range(len(requests))]

    def _texts(self, requests: Sequence[Instance], how: SamplingConfig) -> list[str]:
        contexts = [request.args[0] for request in requests]
        # White space alone has no tokens in some tokenizers.
        tokens = [self.tok_encode(context) or [self.prefix_token_id] for context in contexts]
        cut = self._cut(tokens, [how.max_new_tokens + 1] * len(tokens))
        texts = [written.text for written in self.model.generate_tokens(contexts, cut, how)]
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    def _settings(self, of_task: Mapping[str, Any]) -> SamplingConfig:
        """A task's generation_kwargs as ours."""
        given = normalize_gen_kwargs(dict(of_task), self.max_gen_toks)
        stop = [text for text in given.pop("until") if text]
        most = given.pop("max_gen_toks")
        samples = given.pop("do_sample")
        if given.get("num_beams") == 1:
            given.pop("num_beams")
        if unknown := given.keys() - set(_SAMPLING):
            raise UserError(
                f"generation_kwargs: {sorted(unknown)[0]} has no effect here; known are until, max_gen_toks, "
                f"do_sample, {', '.join(_SAMPLING)}"
            )
        if self.backend == "causal" and most >= self.max_length:
            raise UserError(
                f"generation_kwargs: max_gen_toks={most} leaves no room for a context in the model's "
                f"{self.max_length} tokens: lower it, in the task or in model_args"
            )
        settings = {"temperature": 1.0 if samples else 0.0, **given}
        return SamplingConfig(max_new_tokens=most, stop=tuple(stop), **settings)

    # --- chat ---

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a conversation, in which private characters stand for the special tokens of the template.

        So nothing in a question can spell such a token, and `tok_encode` finds those that are meant.

        Args:
          chat_history: messages with "role" and "content".
          add_generation_prompt: whether the model's answer comes next; else the last message is its beginning.

        Raises:
          UserError: if the model has no chat template, or that refuses the conversation.
        """
        if add_generation_prompt:
            return self._chat.texts([chat_history])[0]
        *before, begun = chat_history
        return self._chat.texts([before])[0] + self.model.tokenizer.control_tokens.checked(begun["content"])

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The chat template, as the harness writes it among its results."""
        return self._chat.template if chat_template else ""

    @property
    def tokenizer_name(self) -> str:
        """A digest of the tokenizer, by which the harness caches requests."""
        return self.model.tokenizer.digest

    def get_model_info(self) -> dict[str, Any]:
        """Which model it is, as the harness writes it among its results."""
        calibrator = self.model.calibrator
        return {
            "checkpoint": self.model.step,
            "model_digest": self.model.digest,
            "calibrator": None if calibrator is None else calibrator.name,
        }

    @functools.cached_property
    def _chat(self) -> Chat:
        return Chat.of(self.model.tokenizer)

    @functools.cached_property
    def _control_characters(self) -> frozenset[str]:
        return frozenset(self.model.tokenizer.control_tokens.spellings.values())


def run_command_line() -> None:
    """The harness's own command line, on `sys.argv`, with `calibrated_lm` among its models."""
    cli_evaluate()


_LOGGER = logging.getLogger("lm_eval")


def _checked_batch_size(value: int | str) -> int:
    """The number of rows; 0 for "auto"."""
    if str(value).startswith("auto"):
        return 0
    if not str(value).isdecimal() or int(value) < 1:
        raise UserError(f"batch_size={value} must be a positive number, or auto")
    return int(value)


def _whole_contexts(contexts: Sequence[list[int]]) -> Iterator[list[int]]:
    """Numbers of requests sorted by their contexts, some at a time, never a part of a context's."""
    some: list[int] = []
    for number in sorted(range(len(contexts)), key=lambda number: contexts[number]):
        if len(some) >= _PAIRS_AT_A_TIME and contexts[number] != contexts[some[-1]]:
            yield some
            some = []
        some.append(number)
    if some:
        yield some


def _total(scored: Continuation) -> float:
    """The calibrated log-probability of a continuation, or the model's own."""
    log_probs = scored.log_probs if scored.calibrated_log_probs is None else scored.calibrated_log_probs
    return float(log_probs.sum(dtype="float64"))
