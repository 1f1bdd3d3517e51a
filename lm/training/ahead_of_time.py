"""A training step for devices that need not be here: lowered, partitioned or compiled from shapes alone.

Axes: B batch, T tokens of a row.
"""

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lm.data.config import TokenizerConfig
from lm.data.store import Corpus, TokenStore
from lm.data.tokenizers import Tokenizer, train_tokenizer
from lm.errors import UserError
from lm.models.accounting import training_flops_per_token
from lm.models.sharding import placed_shapes
from lm.modules.config import TRANSFORMERS
from lm.objectives.objective import PretrainingTask
from lm.objectives.registry import make_task, special_tokens
from lm.runs.config import PretrainConfig
from lm.runs.state import TrainState
from lm.training.loop import check_batch_size
from lm.training.optimizers import make_optimizer
from lm.training.partitioning import mesh_partitioner
from lm.training.step import init_state, make_train_step

# Only the partitioner's result is wanted: the rest of the compilation is made as short as it can be.
_QUICKLY: dict[str, str | bool] = {"xla_backend_optimization_level": "0", "xla_llvm_disable_expensive_passes": True}
_ROWS = 2  # of the batch whose shapes are taken

Shapes = dict[str, jax.ShapeDtypeStruct]


@dataclasses.dataclass(frozen=True)
class AbstractStep:
    """A step without data.

    Attributes:
      config: of the run, its vocabulary size known.
      mesh: of devices.
      lowered: the step, ready to be compiled.
      state: shapes of the state, with shardings.
      batch: shapes of the batch, with shardings.
    """

    config: PretrainConfig
    mesh: Mesh
    lowered: jax.stages.Lowered
    state: TrainState
    batch: Shapes

    @property
    def model_flops(self) -> int:
        """Operations of one step on all devices that the model needs, without recomputation."""
        batch_size, length = self.batch["tokens"].shape
        inputs = self.batch["inputs"].shape[1] if "inputs" in self.batch else None
        predicted = self.batch["targets"].shape[1] / length
        tokens = batch_size * (length + (inputs or 0))
        return tokens * training_flops_per_token(self.config.model, length, inputs, predicted)


def abstract_step(config: PretrainConfig, devices: Sequence[jax.Device]) -> AbstractStep:
    """The step that a run with this config would compile for these devices.

    Args:
      config: of the run; neither its text nor its tokenizer is needed.
      devices: on which, virtual or described by a topology.

    Raises:
      UserError: if the config doesn't fit the devices, or cannot be planned.
    """
    if config.partitioning.strategy != "jit":
        raise UserError("config.partitioning.strategy=pmap cannot be planned: set config.partitioning.strategy=jit")
    if config.model.architecture not in TRANSFORMERS:
        raise UserError(
            f"config.model.architecture={config.model.architecture} cannot be planned: only Transformers can"
        )
    partitioner = mesh_partitioner(config.partitioning, devices)
    check_batch_size(config, partitioner)
    tokenizer = _tokenizer(config)
    config = _with_vocabulary(config, tokenizer)
    task = make_task(config.objective, config.model, tokenizer, partitioner.mesh)
    optimizer = make_optimizer(config.optimizer, config.training.steps)
    initial = _without_kernels(config, tokenizer)
    state = jax.eval_shape(lambda key: init_state(initial, optimizer, config.optimizer, key), jax.random.key(0))
    state = placed_shapes(state, partitioner.mesh)
    batch = _batch(config, task, tokenizer, NamedSharding(partitioner.mesh, P(("data", "fsdp"))))
    step = make_train_step(
        task, optimizer, config.optimizer, seed=config.seed, micro_batches=config.training.micro_batches
    )
    jitted = cast(Any, partitioner.compile_train_step(step))  # a `Callable` for the loop
    lowered = jitted.lower(state, batch)
    return AbstractStep(config, partitioner.mesh, lowered, state, batch)


def bytes_per_device(tree: Any) -> int:
    """Bytes that each device holds of arrays with shardings."""
    leaves = jax.tree.leaves(tree)
    return sum(int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf in leaves)


def partitioned_hlo(lowered: jax.stages.Lowered) -> str:
    """The program of one device as XLA's partitioner makes it, before the passes of a backend change it.

    On CPU those passes turn bfloat16 into float32, also where it is communicated; other backends don't.

    Args:
      lowered: for a mesh of CPU devices, which may be virtual.
    """
    with tempfile.TemporaryDirectory() as folder, _without_cache():
        lowered.compile(_QUICKLY | {"xla_dump_to": folder, "xla_dump_hlo_pass_re": "spmd-partitioning"})
        for path in Path(folder).glob("*after_spmd-partitioning*.txt"):
            return path.read_text(encoding="utf-8")
    return lowered.as_text("hlo")  # one device: there was nothing to partition


@contextlib.contextmanager
def _without_cache() -> Iterator[None]:
    """A context without JAX's cache of compiled programs, which would leave out the partitioner."""
    enabled = jax.config.values["jax_enable_compilation_cache"]
    try:
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()  # it remembers whether it is enabled
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)
        compilation_cache.reset_cache()


def _tokenizer(config: PretrainConfig) -> Tokenizer:
    """One that needs no text, with the special tokens of the objective."""
    plain = TokenizerConfig(kind="bytes", end_of_text=config.tokenizer.end_of_text)
    return train_tokenizer(plain, []).with_special_tokens(special_tokens(config.objective))


def _with_vocabulary(config: PretrainConfig, tokenizer: Tokenizer) -> PretrainConfig:
    """The config with the size of the vocabulary, as far as it is known without the text.

    Raises:
      UserError: if it isn't.
    """
    kind, size = config.tokenizer.kind, config.model.vocab_size
    if size is None and kind == "bytes":
        size = tokenizer.vocab_size
    elif size is None and kind in ("bpe", "unigram", "wordpiece", "words"):
        size = config.tokenizer.vocab_size + len(special_tokens(config.objective))
    if size is None:
        raise UserError(f"config.tokenizer.kind={kind} leaves the vocabulary's size open: set config.model.vocab_size")
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=size))


def _without_kernels(config: PretrainConfig, tokenizer: Tokenizer) -> PretrainingTask:
    """The task with an attention that can be traced anywhere, to know the parameters' shapes."""
    model = dataclasses.replace(config.model, attention="explicit")
    return make_task(config.objective, model, tokenizer)


def _batch(config: PretrainConfig, task: PretrainingTask, tokenizer: Tokenizer, sharding: NamedSharding) -> Shapes:
    """Shapes of the batches that the objective makes, found by making one of a few rows of random tokens."""
    length = 4 * _ROWS * config.model.size_of_sequence
    starts = np.arange(0, length, max(length // 16, 1), dtype=np.int64)
    tokens = np.random.default_rng(0).integers(0, 256, length).astype(np.uint16)
    end = tokenizer.end_of_text
    if end is not None:
        tokens[starts] = tokens[-1] = end
    store = TokenStore(tokens, starts, length, end)
    made = task.train_batches(Corpus(tokenizer, store, store), _ROWS, config.seed)[0]
    rows = config.training.batch_size
    return {
        name: jax.ShapeDtypeStruct((rows, *array.shape[1:]), array.dtype, sharding=sharding)
        for name, array in made.items()
    }
