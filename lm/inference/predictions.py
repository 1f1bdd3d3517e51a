"""Predictions of a trained model as a file, for `experiments.calibrate`.

Axes: B windows, T positions, N tokens, D model width, V vocabulary.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

from lm.calibration.logits import FactoredLogits
from lm.calibration.predictions import Predictions
from lm.data.store import TokenStore
from lm.data.windows import window
from lm.errors import UserError
from lm.inference.language_models import LanguageModel
from lm.models.decoder_lm import DecoderLM
from lm.runs.config import PredictionsConfig
from lm.types import AnyArray

# Up to this size (256 MiB) logits are written out; larger ones are stored as two factors.
_MOST_LOGITS = 2**26
_FEWEST_DOCUMENTS = 30


def write_predictions(
    in_use: LanguageModel, store: TokenStore, config: PredictionsConfig, seed: int, path: Path
) -> Predictions:
    """Predicts every token of some randomly chosen windows of a text, and writes an npz file.

    Logits over a large vocabulary are stored as their factors, last hidden states and output matrix: nothing is
    truncated or rounded, and calibrators that scale and shift logits work on the factors. Capped logits have no such
    factors and are stored whole.

    The cluster of a token is its document, or, with fewer than 30 documents, its window of `size_of_sequence` tokens.

    Args:
      in_use: a decoder.
      store: the text.
      config: how many tokens.
      seed: for choosing windows.
      path: of the npz file.
    """
    model, params = in_use.model, in_use.params
    length = model.config.size_of_sequence
    hidden, labels, ids = [], [], []
    for start in _chosen_starts(store, config, seed, length):
        row = window(store, start, length)
        counted_T = row["weights"] > 0
        batch = {name: row[name][None] for name in ("tokens", "segments", "positions")}
        hidden.append(np.asarray(last_hidden(model, params, batch)[0], np.float32)[counted_T])
        labels.append(row["targets"][counted_T])
        ids.append(start + 1 + np.flatnonzero(counted_T))
    hidden_ND, labels_N, ids_N = (np.concatenate(parts) for parts in (hidden, labels, ids))
    # By the token before: what ends a document belongs to it, and begins the next one.
    documents_N = np.searchsorted(store.document_starts, ids_N - 1, side="right") - 1
    windows_N = (ids_N - 1) // length
    enough = np.unique(documents_N).size >= _FEWEST_DOCUMENTS
    factors = logit_factors(model, params, hidden_ND)
    whole = factors.shape[0] * factors.shape[1] <= _MOST_LOGITS or model.config.logit_softcap is not None
    predictions = Predictions(
        logits=np.asarray(_logits(model, params, hidden_ND)) if whole else factors,
        labels_N=labels_N,
        ids_N=ids_N,
        clusters_N=documents_N if enough else windows_N,
        checkpoint=in_use.step,
        model=in_use.digest,
    )
    predictions.save(path)
    return predictions


def check_predictable(store: TokenStore, config: PredictionsConfig, seed: int, length: int) -> int:
    """How many tokens `write_predictions` would predict, without a model.

    Raises:
      UserError: if there are none.
    """
    starts = _chosen_starts(store, config, seed, length)
    tokens = sum(int((window(store, start, length)["weights"] > 0).sum()) for start in starts)
    if not tokens:
        raise UserError(
            f"config.predictions.tokens={config.tokens}, but the validation text has no token that follows another: "
            "set it to 0, or use more text for validation"
        )
    return tokens


def _chosen_starts(store: TokenStore, config: PredictionsConfig, seed: int, length: int) -> list[int]:
    """Where the windows to predict begin."""
    starts = np.arange(0, store.num_tokens - 1, length)
    wanted = min(-(-config.tokens // length), starts.size)
    return np.sort(np.random.default_rng(seed).permutation(starts)[:wanted]).tolist()


@functools.partial(jax.jit, static_argnames="model")
def last_hidden(model: DecoderLM, params: Any, batch: Mapping[str, AnyArray]) -> Array:
    """The hidden states that a decoder predicts each next token from, [B, T, D] in its compute dtype.

    Args:
      model: a decoder.
      params: its parameters.
      batch: `tokens`, `segments` and `positions`, [B, T] each.
    """
    return model.apply(
        {"params": params}, batch["tokens"], batch["segments"], batch["positions"], method=DecoderLM.hidden
    )


@functools.partial(jax.jit, static_argnames="model")
def _logits(model: DecoderLM, params: Any, hidden_ND: Array) -> Array:
    hidden_ND = hidden_ND.astype(model.config.compute_dtype)
    return model.apply({"params": params}, hidden_ND, method=DecoderLM.logits)


def logit_factors(model: DecoderLM, params: Any, hidden_ND: np.ndarray) -> FactoredLogits:
    """The logits before their cap: hidden states and the output matrix as the model uses it, in the compute dtype.

    A bias is the last column of the matrix, beside hidden states of 1.

    Args:
      model: a decoder.
      params: its parameters.
      hidden_ND: from `last_hidden`.
    """
    config = model.config
    output_VD = params["token_embedding"]["embedding"] if config.tie_embeddings else params["output"]
    output_VD = np.asarray(output_VD.astype(config.compute_dtype), np.float32) * np.float32(config.logit_scale)
    if config.output_bias:
        bias_V1 = np.asarray(params["output_bias"], np.float32)[:, None]
        output_VD = np.concatenate([output_VD, bias_V1], axis=1)
        hidden_ND = np.concatenate([hidden_ND, np.ones((len(hidden_ND), 1), np.float32)], axis=1)
    return FactoredLogits(hidden_ND, output_VD)
