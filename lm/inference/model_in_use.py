"""What all models in use share: a run's parts on one device or a mesh, and text embeddings.

Axes: N texts, B rows of a batch, T positions, D width of the hidden states.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NoReturn

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lm.calibration.calibrators import Fitted
from lm.console import QUIET, Console
from lm.data.example_batches import EvaluationExampleBatches
from lm.data.tokenizers import Tokenizer
from lm.errors import UserError
from lm.inference.examples import predict_examples
from lm.models.encoder_decoder_lm import EncoderDecoderLM
from lm.runs.checkpoints import checksum
from lm.runs.config import FinetuneConfig, PretrainConfig, RunConfig
from lm.runs.trained_run import TrainedRun
from lm.tasks import text_encoding
from lm.tasks.supervised import Example
from lm.types import Batch, HostBatch, Params

_SHORTEST_VECTOR = 1e-12  # shorter ones are not made longer

# From parameters and a batch, on the host or on devices, to arrays by name.
Step = Callable[[Params, Any], dict[str, Array]]


@dataclasses.dataclass(frozen=True, eq=False)
class ModelInUse:
    """A trained model with everything needed to use it. `lm.load` creates one from a work directory.

    Attributes:
      run: its parts.
      calibrator: of its probabilities, or None.
      mesh: of devices that hold the parameters, or None for one device.
    """

    kind: ClassVar[str] = "a model"  # with its article, for messages
    uses: ClassVar[tuple[str, ...]] = ("embed",)  # methods that this kind has

    run: TrainedRun
    calibrator: Fitted | None = None
    mesh: Mesh | None = None

    def __post_init__(self):
        if self.calibrator is not None:
            self._check_calibrator(self.calibrator)

    def _check_calibrator(self, fitted: Fitted) -> None:
        """Raises UserError for a calibrator of another model; one that doesn't say where it is from is accepted."""
        name, own = f"the calibrator {fitted.name}", "use one that was fitted to this run's own predictions"
        if fitted.classes != self.choices:
            raise UserError(f"{name} is for {fitted.classes} classes, and this model has {self.choices}: {own}")
        if fitted.model is not None and fitted.model == self.digest:
            return  # of whatever step: an exported model has none
        if fitted.checkpoint not in (None, self.step):
            raise UserError(
                f"{name} was fitted to checkpoint {fitted.checkpoint}, and this is checkpoint {self.step}: use "
                f"--checkpoint={fitted.checkpoint}, or write the predictions of checkpoint {self.step} and fit it "
                "again with experiments.calibrate"
            )
        if fitted.model not in (None, self.digest):
            raise UserError(f"{name} was fitted to another model than this run's checkpoint {self.step}: {own}")

    @functools.cached_property
    def digest(self) -> str:
        """A digest of the parameters, the same on any number of devices."""
        return f"{checksum(self.params):08x}"

    @property
    def choices(self) -> int:
        """The number of classes, or tokens, that a calibrator must have."""
        return len(self.classes) or self.config.model.vocab_size or 0

    @property
    def config(self) -> RunConfig:
        """The run's config, with its vocabulary size."""
        return self.run.config

    @property
    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer."""
        return self.run.tokenizer

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes or tags; empty for a model that generates text."""
        return self.run.classes

    @property
    def params(self) -> Params:
        """The parameters: their moving average, if the run kept one."""
        return self.run.params

    @property
    def step(self) -> int:
        """The checkpoint's step."""
        return self.run.step

    @property
    def task(self) -> Any:
        """The task that was learned."""
        return self.run.task

    @property
    def model(self) -> Any:
        """The network, a Flax module."""
        return self.task.model

    def embed(self, texts: Sequence[str], truncate: bool = False) -> np.ndarray:
        """A vector for each text, [N, D] in float32: the mean of the last hidden states over its tokens.

        For an encoder-decoder these are the encoder's. Mean pooling works best without further training (Reimers &
        Gurevych 2019, section 6; Ni et al. 2022, Sentence-T5). A published sentence encoder says itself whether it
        takes the mean or the first token's state, and whether vectors have length 1.

        Args:
          texts: each encoded as one text.
          truncate: use only the beginning of texts longer than `config.model.sequence_length`.

        Raises:
          UserError: for a text that is too long.
        """
        texts = as_list(texts, "texts")
        config = self.config.model
        places = [f"text {number}" for number in range(1, len(texts) + 1)]
        instead = "use truncate=True, on the command line --truncate, to embed their beginnings"
        encoding = self.tokenizer, config, texts, None, truncate, places, instead
        examples = text_encoding.encode_texts(*encoding).examples
        outputs = self.outputs(self._embed, examples, text_encoding.AXES, {})
        return np.stack([output["embedding"] for output in outputs]) if texts else np.zeros((0, config.width))

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """For models that classify or answer questions.

        Raises:
          UserError: for all others.
        """
        self._refuse("predict")

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """For models that generate text.

        Raises:
          UserError: for all others.
        """
        self._refuse("generate")

    def log_probs(self, *args: Any, **kwargs: Any) -> Any:
        """For models that generate text.

        Raises:
          UserError: for all others.
        """
        self._refuse("log_probs")

    def fill(self, *args: Any, **kwargs: Any) -> Any:
        """For models that predict hidden tokens.

        Raises:
          UserError: for all others.
        """
        self._refuse("fill")

    def _refuse(self, asked: str) -> NoReturn:
        raise UserError(f"this run is {self.kind}; it has no {asked}: use {' or '.join(self.uses)}")

    @property
    def pooling(self) -> str:
        """How a text's vector is made of its tokens' states: "mean" or "first"."""
        return self.config.objective.pooling if isinstance(self.config, PretrainConfig) else "mean"

    @property
    def normalizes(self) -> bool:
        """Whether a text's vector has length 1."""
        return isinstance(self.config, PretrainConfig) and self.config.objective.normalize

    @functools.cached_property
    def _embed(self) -> Step:
        def step(params: Params, batch: Batch) -> dict[str, Array]:
            hidden_BTD = self.model.apply({"params": params}, batch, method=_hidden_of_texts).astype(jnp.float32)
            counted_BT1 = (batch["segments"] > 0)[:, :, None].astype(jnp.float32)
            vectors_BD = (counted_BT1 * hidden_BTD).sum(axis=1) / jnp.maximum(counted_BT1.sum(axis=1), 1)
            if self.pooling == "first":
                vectors_BD = hidden_BTD[:, 0]
            if self.normalizes:
                vectors_BD /= jnp.maximum(jnp.linalg.norm(vectors_BD, axis=1, keepdims=True), _SHORTEST_VECTOR)
            return {"embedding": vectors_BD}

        return self._compiled(step)

    def _compiled(self, step: Step) -> Step:
        """Compiles a function of (parameters, batch) with replicated results."""
        return jax.jit(step, out_shardings=None if self.mesh is None else NamedSharding(self.mesh, P()))

    def outputs(
        self,
        step: Step,
        examples: Sequence[Example],
        axes: Mapping[str, str],
        padding: Mapping[str, int],
        batch_size: int = 0,
        console: Console = QUIET,
    ) -> list[dict[str, Any]]:
        """Each example's results of a compiled step, in batches of similar length with as few shapes as in training."""
        if not examples:
            return []
        axes = {name: axis for name, axis in axes.items() if name in examples[0]}
        size = batch_size or self._batch_size(len(examples))
        batches = EvaluationExampleBatches(examples, axes, padding, size, self._buckets)
        with console.progress("predicting", len(batches)) as advance:
            return predict_examples(
                lambda batch: step(self.params, self._placed(batch)), batches, len(examples), advance
            )

    def _batch_size(self, examples: int) -> int:
        """The run's batch size, or a smaller power of two for few examples."""
        training = self.config.training
        return min(training.evaluation_batch_size or training.batch_size, 1 << (examples - 1).bit_length())

    @property
    def _buckets(self) -> tuple[int, ...]:
        if isinstance(self.config, FinetuneConfig):
            return self.config.lengths
        longest = self.config.model.size_of_sequence
        return (*(2**power for power in range(4, 20) if 2**power < longest), longest)

    def _placed(self, batch: HostBatch) -> HostBatch | Batch:
        """The batch on the parameters' devices, its rows sharded if they divide evenly."""
        if self.mesh is None:
            return batch
        shards = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        even = len(batch["index"]) % shards == 0
        sharding = NamedSharding(self.mesh, P(("data", "fsdp")) if even else P())
        placed: Batch = {
            name: jax.make_array_from_callback(values.shape, sharding, values.__getitem__)
            for name, values in batch.items()
        }
        return placed


class Encoder(ModelInUse):
    """Encodes texts: a published model without a prediction head, such as a sentence encoder."""

    kind: ClassVar[str] = "an encoder"


def as_list(values: Sequence[Any], name: str) -> list[Any]:
    """The values as a list.

    Raises:
      UserError: for a single text, which Python would treat as a list of characters.
    """
    if isinstance(values, str):
        raise UserError(f"{name} must be a list of them, not one text: write [text]")
    return list(values)


def _hidden_of_texts(model: nn.Module, batch: Mapping[str, Array]) -> Array:
    """The last hidden states of a model, or of its body or encoder, [B, T, D]."""
    if isinstance(model, EncoderDecoderLM):
        return model.encode(batch["tokens"], batch["segments"])
    body = getattr(model, "body", model)
    types_BT = batch["types"] if body.config.segment_types else None
    return body.hidden(batch["tokens"], batch["segments"], types_BT=types_BT)
