"""What decoding returns: tokens, and what the model thought of each.

Axes: B sequences, T new positions.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


@dataclasses.dataclass(frozen=True)
class Continuation:
    """What follows one prompt (of an encoder-decoder: its output), written by a model or given to it.

    Attributes:
      tokens: ids, int32 [n], the end-of-text token included if there is one.
      log_probs: the model's own log-probability of each, float32 [n], in nats: temperature 1, nothing ruled out but
        ids that pad the embedding table. Confidence and calibration are about these.
      calibrated_log_probs: the same after a calibrator; None without one.
      sampling_log_probs: those of the distribution that was sampled from, after the calibrator, temperature, top-k and
        top-p; None where nothing was sampled.
      finished: whether it ends with the end-of-text token; otherwise a limit cut it.
    """

    tokens: np.ndarray
    log_probs: np.ndarray
    calibrated_log_probs: np.ndarray | None
    sampling_log_probs: np.ndarray | None
    finished: bool

    def __add__(self, later: "Continuation") -> "Continuation":
        """This one and what follows it."""
        return Continuation(
            tokens=np.concatenate([self.tokens, later.tokens]),
            log_probs=np.concatenate([self.log_probs, later.log_probs]),
            calibrated_log_probs=_joined(self.calibrated_log_probs, later.calibrated_log_probs),
            sampling_log_probs=_joined(self.sampling_log_probs, later.sampling_log_probs),
            finished=later.finished,
        )


def _joined(earlier: np.ndarray | None, later: np.ndarray | None) -> np.ndarray | None:
    return None if earlier is None or later is None else np.concatenate([earlier, later])


@flax.struct.dataclass
class Decoded:
    """The continuations of a batch of prompts, on the device.

    Attributes:
      tokens_BT: tokens, the end-of-text token included where one ends with it; 0 after its end.
      log_probs_BT, calibrated_log_probs_BT, sampling_log_probs_BT: as in `Continuation`; 0 after its end.
      lengths_B: number of tokens.
      finished_B: as in `Continuation`.
    """

    tokens_BT: Array
    log_probs_BT: Array
    calibrated_log_probs_BT: Array | None
    sampling_log_probs_BT: Array | None
    lengths_B: Array
    finished_B: Array

    @classmethod
    def empty(cls, batch: int, length: int, *, calibrated: bool, sampled: bool) -> "Decoded":
        """No tokens yet, and room for `length`."""
        zeros_BT = jnp.zeros((batch, length), jnp.float32)
        return cls(
            tokens_BT=jnp.zeros((batch, length), jnp.int32),
            log_probs_BT=zeros_BT,
            calibrated_log_probs_BT=zeros_BT if calibrated else None,
            sampling_log_probs_BT=zeros_BT if sampled else None,
            lengths_B=jnp.zeros(batch, jnp.int32),
            finished_B=jnp.zeros(batch, bool),
        )

    @property
    def total_log_probs_B(self) -> Array:
        """The model's own log-probability of each whole continuation."""
        return self.log_probs_BT.sum(axis=1)

    def continuations(self) -> list[Continuation]:
        """One a row, without padding, on the host."""
        host = jax.device_get(self)
        calibrated_BT, sampling_BT = host.calibrated_log_probs_BT, host.sampling_log_probs_BT
        return [
            Continuation(
                tokens=host.tokens_BT[row, :length],
                log_probs=host.log_probs_BT[row, :length],
                calibrated_log_probs=None if calibrated_BT is None else calibrated_BT[row, :length],
                sampling_log_probs=None if sampling_BT is None else sampling_BT[row, :length],
                finished=bool(finished),
            )
            for row, (length, finished) in enumerate(zip(host.lengths_B, host.finished_B, strict=True))
        ]
