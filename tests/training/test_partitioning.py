"""However the work is spread over devices, it is the same work."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from lm.data.example_batches import TrainExampleBatches
from lm.errors import UserError
from lm.models.decoder_lm import DecoderLM
from lm.models.heads import SequenceClassifier
from lm.models.sharding import parameter_spec, tree_shardings
from lm.modules.config import ModelConfig
from lm.objectives.causal_lm import CausalLM
from lm.objectives.objective import ObjectiveConfig
from lm.objectives.registry import make_task
from lm.runs.checkpoints import Checkpoints
from lm.runs.config import OptimizerConfig, PartitioningConfig
from lm.tasks.sequence_classification import SequenceClassification
from lm.tasks.supervised import TaskConfig
from lm.training.optimizers import make_optimizer
from lm.training.partitioning import make_partitioner
from lm.training.step import init_state, make_train_step
from tests.objectives.toy_corpus import corpus_for, tokenizer_for, toy_model

LAYOUTS = {
    "data": PartitioningConfig(data=8),
    "fsdp": PartitioningConfig(data=1, fsdp=8),
    "mixed": PartitioningConfig(data=2, fsdp=2, tensor=2),
    "pmap": PartitioningConfig(strategy="pmap"),
}
MODEL = ModelConfig(vocab_size=48, layers=2, width=32, heads=4, kv_heads=2, max_length=16, bias=True)
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, warmup_steps=2, ema_decay=0.9)
STEPS = 10


def batches():
    random = np.random.default_rng(1)
    for _ in range(STEPS):
        tokens = (random.integers(0, 48, (16, 17)) ** 2 // 48).astype(
            np.int32
        )  # skewed, so that there is something to learn
        weights = (random.random((16, 16)) < random.random((16, 1))).astype(np.float32)  # ragged
        segments = np.cumsum(random.random((16, 16)) < 0.2, axis=1).astype(np.int32)
        positions = np.tile(np.arange(16, dtype=np.int32), (16, 1))
        yield {
            "tokens": tokens[:, :-1],
            "targets": tokens[:, 1:],
            "weights": weights,
            "positions": positions,
            "segments": segments,
        }


@functools.cache
def compiled(name: str, micro_batches: int = 1):
    """The partitioner, and the compiled init and train step, for one layout; "one" is plain `jit` on one device."""
    partitioner = make_partitioner(LAYOUTS[name]) if name != "one" else None
    task = CausalLM(DecoderLM(MODEL, partitioner.mesh if partitioner else None))
    optimizer = make_optimizer(OPTIMIZER, STEPS)
    axis_name = partitioner.axis_name if partitioner else None
    step = make_train_step(task, optimizer, OPTIMIZER, seed=0, micro_batches=micro_batches, axis_name=axis_name)

    def init(key):
        return init_state(task, optimizer, OPTIMIZER, key)

    if partitioner is None:
        return None, jax.jit(init), jax.jit(step)
    return partitioner, partitioner.compile_init(init), partitioner.compile_train_step(step)


def losses_of_steps(name: str, state, first: int = 0, last: int = STEPS, micro_batches: int = 1):
    """Losses of some of the ten steps, and the state after them."""
    partitioner, _, step = compiled(name, micro_batches)
    losses = []
    for batch in list(batches())[first:last]:
        state, sums = step(state, partitioner.place_batch(batch) if partitioner else batch)
        losses.append(float(sums["loss"]) / float(sums["weight"]))
    return losses, state


def first_state(name: str):
    return compiled(name)[1](jax.random.key(0))


@pytest.fixture(scope="module")
def one_device():
    return losses_of_steps("one", first_state("one"))


# The mixed mesh has the axes of the others; each layout costs a compilation.
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in ("data", "fsdp"))) for name in LAYOUTS]
)
def test_ten_steps_equal_those_of_one_device(name, one_device):
    losses, state = losses_of_steps(name, first_state(name))
    np.testing.assert_allclose(losses, one_device[0], rtol=2e-6)
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(one_device[1]), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-4)
    assert losses[-1] < losses[0]


class Masked:
    """Masked language modelling by an encoder."""

    objective = ObjectiveConfig(name="masked")

    def task(self, mesh=None):
        model = toy_model(self.objective, 16).config
        return make_task(self.objective, model, tokenizer_for(self.objective), mesh)

    def batches(self):
        """The last windows of the validation text too: rows of padding, so that devices differ in what they hold."""
        task, corpus = self.task(), corpus_for(self.objective)
        validation = task.validation_batches(corpus, 16)
        return [*(task.train_batches(corpus, 16, seed=0)[step] for step in range(4)), validation[len(validation) - 1]]


class SpanCorruption(Masked):
    """Span corruption by an encoder-decoder."""

    objective = ObjectiveConfig(name="span_corruption", sentinels=10)


class Classification:
    """Fine-tuning on few texts, whose batches are not full."""

    def task(self, mesh=None):
        model = toy_model(ObjectiveConfig(name="masked"), 16).config
        return SequenceClassification(SequenceClassifier(model, 4, mesh), TaskConfig(), None, tuple("abcd"))

    def batches(self):
        random = np.random.default_rng(2)
        examples = []
        for length in random.integers(2, 12, size=21):
            tokens, ones = random.integers(0, 40, length).astype(np.int32), np.ones(length, np.int32)
            label = np.int32(random.integers(4))
            examples.append({"tokens": tokens, "segments": ones, "types": 0 * ones, "label": label})
        batches = TrainExampleBatches(examples, SequenceClassification.axes, {}, 16, 0, (12,))
        assert batches.steps_per_epoch == 2
        return [batches[step] for step in range(6)]


def losses_of(kind, name: str | None) -> list[float]:
    """The loss of each step of a short run, on a layout or on one device."""
    partitioner = make_partitioner(LAYOUTS[name]) if name else None
    task = kind.task(partitioner.mesh if partitioner else None)
    optimizer = make_optimizer(OPTIMIZER, STEPS)
    step = make_train_step(task, optimizer, OPTIMIZER, seed=0, axis_name=partitioner.axis_name if partitioner else None)

    def init(key):
        return init_state(task, optimizer, OPTIMIZER, key)

    step = partitioner.compile_train_step(step) if partitioner else jax.jit(step)
    state = (partitioner.compile_init(init) if partitioner else jax.jit(init))(jax.random.key(0))
    losses = []
    for batch in kind.batches():
        state, sums = step(state, partitioner.place_batch(batch) if partitioner else batch)
        losses.append(float(sums["loss"]) / float(sums["weight"]))
    return losses


@functools.cache
def losses_on_one_device(kind) -> list[float]:
    return losses_of(kind(), None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *((Masked, name) for name in LAYOUTS),
        *((kind, name) for kind in (SpanCorruption, Classification) for name in ("mixed", "pmap")),
    ],
)
def test_other_tasks_are_the_same_work_too(kind, name):
    expected = losses_on_one_device(kind)
    np.testing.assert_allclose(losses_of(kind(), name), expected, rtol=2e-6)
    assert len(set(expected)) == len(expected)


def test_accumulation_over_devices_equals_one_big_batch(one_device):
    losses, _ = losses_of_steps("data", first_state("data"), micro_batches=2)
    np.testing.assert_allclose(losses, one_device[0], rtol=2e-6)


def test_fsdp_and_tensor_really_split_the_parameters():
    state = first_state("mixed")
    kernel = state.params["decoder"]["layer_0"]["feed_forward"]["up"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (16, 64)
    first_moment = jax.tree.leaves(state.optimizer_state)
    bytes_on_one = sum(x.addressable_shards[0].data.nbytes for x in first_moment)
    assert bytes_on_one < 0.35 * sum(x.nbytes for x in first_moment)


@pytest.mark.parametrize("name", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("data", "fsdp")), "mixed"])
def test_a_step_leaves_every_array_where_it_was(name):
    # Otherwise the second step would compile again.
    state = first_state(name)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    _, state = losses_of_steps(name, state, last=2)
    assert jax.tree.map(lambda x: x.sharding, state) == shardings


def test_what_a_mesh_axis_does_not_divide_stays_whole():
    mesh = make_partitioner(LAYOUTS["mixed"]).mesh
    assert parameter_spec("params/token_embedding/embedding", (65, 32), mesh) == P(None, "fsdp")
    assert parameter_spec("params/decoder/layers/attention/query_key_value/kernel", (2, 32, 32), mesh) == P(
        None, "fsdp", "tensor"
    )
    assert parameter_spec("params/decoder/final_norm/scale", (32,), mesh) == P()


def test_optimizer_state_follows_its_parameter():
    partitioner = make_partitioner(LAYOUTS["mixed"])
    optimizer = make_optimizer(OPTIMIZER, STEPS)
    task = CausalLM(DecoderLM(MODEL))
    shapes = jax.eval_shape(lambda key: init_state(task, optimizer, OPTIMIZER, key), jax.random.key(0))
    shardings = tree_shardings(shapes, partitioner.mesh)
    adam = next(part for part in jax.tree.leaves(shardings.optimizer_state, is_leaf=lambda x: hasattr(x, "mu")))
    assert jax.tree.leaves(adam.mu) == jax.tree.leaves(shardings.params)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        pytest.param("data", "mixed", marks=pytest.mark.slow),
        ("mixed", "pmap"),
        pytest.param("pmap", "fsdp", marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_of_one_layout_restores_on_another(first, then, one_device, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    _, state = losses_of_steps(first, first_state(first), last=5)
    checkpoints.save(state, {})
    like = first_state(then)
    state, _ = checkpoints.restore_newest(like)
    assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, like)
    losses, _ = losses_of_steps(then, state, first=5)
    np.testing.assert_allclose(losses, one_device[0][5:], rtol=2e-6)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"data": 3}, "8 devices"),
        ({"strategy": "xmap"}, "strategy"),
        ({"strategy": "pmap", "tensor": 2}, "pmap"),
        ({"fsdp": 0}, "fsdp"),
    ],
)
def test_impossible_layouts_are_named(values, named):
    with pytest.raises(UserError, match=named):
        make_partitioner(PartitioningConfig(**values))
