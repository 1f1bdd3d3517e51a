"""Generation over a key-value cache, in one compiled loop.

Axes: B sequences, P prompt positions, T new positions, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lm.calibration.calibrators import Fitted
from lm.decoding.sampling import SamplingConfig, sampling_log_probs
from lm.models.decoder_lm import DecoderLM
from lm.modules.stack import empty_caches


@dataclasses.dataclass(frozen=True)
class Generation:
    """One continuation.

    Attributes:
      tokens: the new tokens, the end-of-text token included if there is one.
      log_probs: the model's own log-probability of each: temperature 1, nothing ruled out. Confidence and calibration
        are about these. A calibrator acts on them.
      sampling_log_probs: the log-probability of each under the distribution that was sampled from.
    """

    tokens: np.ndarray
    log_probs: np.ndarray
    sampling_log_probs: np.ndarray


def generate(
    model: DecoderLM,
    params: Any,
    prompts: Sequence[Sequence[int]],
    config: SamplingConfig,
    end_of_text: int | None = None,
    vocab_size: int | None = None,
    calibrator: Fitted | None = None,
) -> list[Generation]:
    """Continues each prompt.

    A continuation depends on its prompt, its place in `prompts` and the seed, but not on what the other prompts are.
    When a sequence reaches the model's `max_length` the model goes on with the last half of it in view, and the
    log-probabilities are given that shorter context.

    Args:
      model: the network.
      params: its parameters.
      prompts: token ids, at least one each. Of a prompt longer than `max_length - 1` the model sees the end.
      config: how to choose; `config.samples` is the caller's to expand.
      end_of_text: the id at which a continuation ends, or None.
      vocab_size: ids from here on are padding of the embedding table and never chosen; None: there are none.
      calibrator: acts on the model's logits before anything else.

    Returns:
      A `Generation` for each prompt.
    """
    rows = [list(prompt) for prompt in prompts]
    if not all(rows):
        raise ValueError("every prompt needs at least one token")
    pieces: list[list[tuple]] = [[] for _ in rows]
    counts, finished = [0] * len(rows), [False] * len(rows)
    window = model.config.max_length
    keep = window - 1
    # What does not change the compiled loop must not compile it again.
    key, distribution = jax.random.key(config.seed), dataclasses.replace(config, seed=0, max_new_tokens=1, samples=1)
    while not all(finished):
        contexts = [row[-keep:] for row in rows]
        lengths = np.array([len(context) for context in contexts], np.int32)
        prompt_BP = np.zeros((len(rows), lengths.max()), np.int32)
        for row, context in enumerate(contexts):
            prompt_BP[row, : len(context)] = context
        remaining = np.array(
            [0 if done else config.max_new_tokens - n for done, n in zip(finished, counts, strict=True)]
        )
        limits = np.minimum(remaining, window - lengths).astype(np.int32)
        generated = np.array(counts, np.int32)
        outcome = _continue(
            model, params, prompt_BP, lengths, limits, generated, key, distribution, end_of_text, vocab_size, calibrator
        )
        tokens_BT, *log_probs = (np.asarray(array) for array in outcome)
        for row, limit in enumerate(limits):
            new = tokens_BT[row, :limit].tolist()
            if end_of_text in new:
                new = new[: new.index(end_of_text) + 1]
                finished[row] = True
            pieces[row].append((np.asarray(new, np.int32), *(array[row, : len(new)] for array in log_probs)))
            rows[row] += new
            counts[row] += len(new)
            finished[row] |= counts[row] >= config.max_new_tokens
        keep = max(window // 2, 1)
    return [Generation(*(np.concatenate(parts) for parts in zip(*row, strict=True))) for row in pieces]


@functools.partial(jax.jit, static_argnames=("model", "config", "end_of_text", "vocab_size", "calibrator"))
def _continue(
    model: DecoderLM,
    params: Any,
    prompt_BP: Array,
    lengths_B: Array,
    limits_B: Array,
    counts_B: Array,
    key: Array,
    config: SamplingConfig,
    end_of_text: int | None,
    vocab_size: int | None,
    calibrator: Fitted | None,
) -> tuple[Array, Array, Array]:
    """Up to `limits_B` new tokens for each row, their log-probabilities, and the sampling distribution's; each [B, T].

    `counts_B` is how many tokens of each row were generated before: the next random keys follow from it.
    """
    batch, prompt_length = prompt_BP.shape
    capacity = model.config.max_length
    variables = {"params": params}
    row_keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(batch))

    def forward(tokens_BT: Array, positions_BT: Array, caches: Any) -> tuple[Array, Any]:
        return model.apply(variables, tokens_BT, positions_BT, caches, method=DecoderLM.hidden_with_cache)

    def choose(hidden_BD: Array, counts_B: Array) -> tuple[Array, Array, Array]:
        logits_BV = model.apply(variables, hidden_BD[:, None], method=DecoderLM.logits)[:, 0]
        if calibrator is not None:
            logits_BV = calibrator.apply(logits_BV)
        if vocab_size is not None:
            logits_BV = jnp.where(jnp.arange(logits_BV.shape[-1])[None, :] < vocab_size, logits_BV, -jnp.inf)
        sampled_BV = sampling_log_probs(logits_BV, config)
        tokens_B = jax.vmap(lambda key, n, row: jax.random.categorical(jax.random.fold_in(key, n), row))(
            row_keys, counts_B, sampled_BV
        )
        of_chosen = lambda scores_BV: jnp.take_along_axis(scores_BV, tokens_B[:, None], axis=1)[:, 0]  # noqa: E731
        return tokens_B, of_chosen(jax.nn.log_softmax(logits_BV)), of_chosen(sampled_BV)

    def unfinished(carry: tuple) -> Array:
        n, active_B = carry[0], carry[1]
        return active_B.any() & (n < capacity)

    def one_token(carry: tuple) -> tuple:
        n, active_B, hidden_BD, caches, outputs = carry
        chosen = choose(hidden_BD, counts_B + n)
        outputs = tuple(output.at[:, n].set(value) for output, value in zip(outputs, chosen, strict=True))
        active_B &= n + 1 < limits_B
        if end_of_text is not None:
            active_B &= chosen[0] != end_of_text
        positions_B1 = jnp.minimum(lengths_B + n, capacity - 1)[:, None]
        hidden_B1D, caches = forward(chosen[0][:, None], positions_B1, caches)
        return n + 1, active_B, hidden_B1D[:, 0], caches, outputs

    positions_BP = jnp.broadcast_to(jnp.arange(prompt_length), prompt_BP.shape)
    # A shorter prompt's padding fills slots that no query sees before the tokens generated there overwrite them.
    hidden_BPD, caches = forward(prompt_BP, positions_BP, empty_caches(model.config, batch, capacity))
    last_BD = jnp.take_along_axis(hidden_BPD, (lengths_B - 1)[:, None, None], axis=1)[:, 0]
    empty = tuple(jnp.zeros((batch, capacity), dtype) for dtype in (jnp.int32, jnp.float32, jnp.float32))
    first = (jnp.zeros((), jnp.int32), limits_B > 0, last_BD, caches, empty)
    return jax.lax.while_loop(unfinished, one_token, first)[-1]
