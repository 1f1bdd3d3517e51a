"""What is computed of each model: its predictions along held-out text and along its own, corrected in two ways or not.

Each held-out window is a prompt and its true continuation, and the model continues the same prompts, so that every
comparison is paired, at equal lengths of context.

Axes: B test windows, F windows to fit on, D prompts for the corrected model, W windows, L tokens of a window, T new
tokens, C chosen positions, N predictions, V vocabulary.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from experiments.entropy_rate.ladder import EntropyRateConfig
from lm.calibration.temperature import fit_temperature
from lm.console import Console
from lm.data.corpora import open_corpus
from lm.data.store import TokenStore
from lm.decoding.look_ahead import check_look_ahead, look_ahead, sample_with_look_ahead
from lm.decoding.sample import generate
from lm.decoding.sampling import SamplingConfig
from lm.errors import UserError
from lm.evaluation.entropy_rate import fit_look_ahead, look_ahead_log_probs
from lm.evaluation.token_statistics import token_statistics
from lm.inference.language_models import LanguageModel
from lm.inference.model_in_use import ModelInUse
from lm.models.accounting import parameter_count
from lm.models.decoder_lm import DecoderLM
from lm.runs.config import PretrainConfig
from lm.types import Params

Arrays = dict[str, np.ndarray]


def measure(model: LanguageModel, config: EntropyRateConfig, name: str, console: Console) -> Arrays:
    """Measures a model.

    Returns:
      Arrays by name, in nats. For each correction of `none`, `temperature` and `look_ahead`: CORRECTION/loss [B, T] and
      CORRECTION/true_text [B, T], the loss and the entropy along the true continuations, and CORRECTION/own [B, T], the
      entropy along the model's. After look-ahead, which is missing for large vocabularies, they are of C positions, C
      positions and D prompts. `positions` [C] counts from the first new token; `parameters`, `temperature`, `alpha`,
      `alpha_standard_error` and `converged` are single numbers.

    Raises:
      UserError: if there is too little held-out text.
    """
    run = model.config
    assert isinstance(run, PretrainConfig), "as `measurable` makes sure"
    corpus = open_corpus(run.data, run.tokenizer, model.tokenizer)
    fit_FL, test_BL = held_out_windows(corpus.validation, config, name)
    vocab_size, first = model.tokenizer.vocab_size, config.prompt_tokens
    positions_C = np.arange(first, fit_FL.shape[1], config.look_ahead_every)
    predict = functools.partial(_along, model, first=first, size=config.batch_size, vocab_size=vocab_size)
    looks_ahead = vocab_size <= config.look_ahead_vocabulary
    with console.progress(f"{name}: measuring", 5 if looks_ahead else 3) as advance:
        found = predict(test_BL, 1.0, "none")
        advance()
        own_BL = _continued(model, test_BL[:, :first], config, 1.0)
        found |= {"none/own": predict(own_BL, 1.0, "none")["none/true_text"]}
        advance()
        log_probs_FCV = _in_batches(
            functools.partial(_log_probs_at, model.model, vocab_size=vocab_size), model, fit_FL, config, positions_C
        )[0]
        labels_N = fit_FL[:, positions_C].reshape(-1)
        fit = fit_temperature(log_probs_FCV.reshape(-1, vocab_size), labels_N)
        temperature = float(fit.temperature)
        found |= predict(test_BL, temperature, "temperature")
        own_BL = _continued(model, test_BL[:, :first], config, temperature)
        found |= {"temperature/own": predict(own_BL, temperature, "temperature")["temperature/true_text"]}
        advance()
        if looks_ahead:
            found |= _with_look_ahead(model, config, fit_FL, test_BL, positions_C, advance)
    numbers = {"parameters": parameter_count(run.model), "temperature": temperature}
    return found | {name: np.asarray(number) for name, number in numbers.items()} | {"positions": positions_C - first}


def measurable(model: ModelInUse, config: EntropyRateConfig, name: str) -> LanguageModel:
    """The model, if it can be measured.

    Raises:
      UserError: for a model that is not a pretrained decoder without end-of-text token, or whose window is too short.
    """
    needed = config.prompt_tokens + config.new_tokens
    if not (
        isinstance(model, LanguageModel)
        and isinstance(model.model, DecoderLM)
        and isinstance(model.config, PretrainConfig)
    ):
        raise UserError(f"{name} is {model.kind}, but only pretrained decoders can be measured: leave it out")
    if model.tokenizer.end_of_text is not None:
        raise UserError(
            f"{name} ends its texts with an end-of-text token, and what it writes after one has no counterpart in real "
            "text: train it with config.tokenizer.end_of_text=False"
        )
    if model.model.config.max_length < needed:
        raise UserError(
            f"{name} has a window of {model.model.config.max_length} tokens, fewer than config.prompt_tokens + "
            f"config.new_tokens = {needed}: set a smaller config.new_tokens"
        )
    if model.tokenizer.vocab_size <= config.look_ahead_vocabulary:
        check_look_ahead(model.model.config)
    return model


def held_out_windows(store: TokenStore, config: EntropyRateConfig, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Windows that do not overlap, each within one document: to fit on, and to test on, drawn at random.

    Raises:
      UserError: if there are too few.
    """
    length = config.prompt_tokens + config.new_tokens
    ends = np.append(store.document_starts[1:], store.num_tokens)
    starts = [
        np.arange(start, end - length + 1, length) for start, end in zip(store.document_starts, ends, strict=True)
    ]
    starts_W = np.random.default_rng(config.seed).permutation(np.concatenate(starts))
    least = config.documents + -(-config.fit_documents // 2)
    if starts_W.size < least:
        raise UserError(
            f"{name}: the held-out documents have {starts_W.size} windows of {length} tokens, fewer than "
            f"config.documents and half of config.fit_documents, {least}: set smaller numbers, or hold out more text"
        )
    starts_W = starts_W[: config.documents + config.fit_documents]
    windows_WL = np.asarray(store.tokens)[starts_W[:, None] + np.arange(length)].astype(np.int32)
    return windows_WL[config.documents :], windows_WL[: config.documents]


def _with_look_ahead(
    model: LanguageModel,
    config: EntropyRateConfig,
    fit_FL: np.ndarray,
    test_BL: np.ndarray,
    positions_C: np.ndarray,
    advance: Callable[[], None],
) -> Arrays:
    """What `measure` returns about the look-ahead correction."""
    vocab_size, first = model.tokenizer.vocab_size, config.prompt_tokens
    read = functools.partial(look_ahead, model.model, vocab_size=vocab_size)
    log_probs_NV, entropies_NV = (
        part.reshape(-1, vocab_size) for part in _in_batches(read, model, fit_FL, config, positions_C)
    )
    clusters_N = np.repeat(np.arange(len(fit_FL)), len(positions_C))
    fit = fit_look_ahead(log_probs_NV, entropies_NV, fit_FL[:, positions_C].reshape(-1), clusters_N)
    own_BCV, entropies_BCV = _in_batches(read, model, test_BL, config, positions_C)
    log_probs_BCV = look_ahead_log_probs(own_BCV, entropies_BCV, fit.alpha)
    advance()
    prompts_DL = test_BL[: config.look_ahead_documents, :first]
    _, own_DT = sample_with_look_ahead(
        model.model, model.params, prompts_DL, fit.alpha, config.seed, config.new_tokens, vocab_size
    )
    advance()
    return {
        "look_ahead/loss": -np.take_along_axis(log_probs_BCV, test_BL[:, positions_C, None], axis=2)[..., 0],
        "look_ahead/true_text": -(np.exp(log_probs_BCV) * log_probs_BCV).sum(axis=2),
        "look_ahead/own": np.asarray(own_DT),
        "alpha": np.asarray(fit.alpha),
        "alpha_standard_error": np.asarray(fit.standard_error),
    }


def _continued(
    model: LanguageModel, prompts_WL: np.ndarray, config: EntropyRateConfig, temperature: float
) -> np.ndarray:
    """Prompts with the model's continuations, [W, L]."""
    how = SamplingConfig(max_new_tokens=config.new_tokens, temperature=temperature, seed=config.seed)
    size, vocab_size = config.batch_size, model.tokenizer.vocab_size
    found = generate(model.model, model.params, prompts_WL.tolist(), how, vocab_size=vocab_size, batch_size=size)
    return np.concatenate([prompts_WL, np.stack([each.tokens for each in found])], axis=1)


def _along(
    model: LanguageModel,
    windows_WL: np.ndarray,
    temperature: float,
    correction: str,
    *,
    first: int,
    size: int,
    vocab_size: int,
) -> Arrays:
    """The loss and the entropy of every prediction from position `first` on."""
    parts = [
        _statistics(model.model, model.params, windows_WL[row : row + size], temperature, first, vocab_size)
        for row in range(0, len(windows_WL), size)
    ]
    loss_WT, entropy_WT = (np.concatenate(part) for part in zip(*jax.device_get(parts), strict=True))
    return {f"{correction}/loss": loss_WT, f"{correction}/true_text": entropy_WT}


@functools.partial(jax.jit, static_argnames=("model", "first", "vocab_size"))
def _statistics(
    model: DecoderLM, params: Params, windows_WL: Array, temperature: float, first: int, vocab_size: int
) -> tuple[Array, Array]:
    logits_WLV = model.apply({"params": params}, windows_WL)[:, first - 1 : -1, :vocab_size] / temperature
    found = token_statistics(logits_WLV, windows_WL[:, first:])
    return found.nll, found.entropy


@functools.partial(jax.jit, static_argnames=("model", "vocab_size"))
def _log_probs_at(
    model: DecoderLM, params: Params, windows_WL: Array, positions_C: Array, vocab_size: int
) -> tuple[Array]:
    hidden_WLD = model.apply({"params": params}, windows_WL, method=DecoderLM.hidden)
    logits_WCV = model.apply({"params": params}, jnp.take(hidden_WLD, positions_C - 1, axis=1), method="logits")
    return (jax.nn.log_softmax(logits_WCV[..., :vocab_size]),)


def _in_batches(
    function: Callable[..., Any],
    model: LanguageModel,
    windows_WL: np.ndarray,
    config: EntropyRateConfig,
    positions_C: np.ndarray,
) -> tuple[np.ndarray, ...]:
    """Results of a function of parameters, windows and positions, over all windows."""
    size = config.batch_size
    parts = [
        jax.device_get(function(model.params, windows_WL[row : row + size], positions_C))
        for row in range(0, len(windows_WL), size)
    ]
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))
