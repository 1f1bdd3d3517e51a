"""Optimizers and schedules: formulas, what decays, and what is clipped."""

import dataclasses
import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm.errors import UserError
from lm.models.build import make_body, make_language_model
from lm.models.decoder_lm import DecoderLM
from lm.models.heads import SequenceClassifier
from lm.modules.config import ModelConfig
from lm.runs.config import OPTIMIZERS, SCHEDULES, OptimizerConfig
from lm.training.optimizers import (
    check_freeze,
    decay_mask,
    make_optimizer,
    make_schedule,
    penalty,
    update_factor,
    warmup_note,
)

PLAIN = OptimizerConfig(schedule="constant", warmup_steps=0, learning_rate=0.01, weight_decay=0.0, clip_norm=0.0)
RANDOM = np.random.default_rng(0)
PARAMS = {
    "token_embedding": {"embedding": RANDOM.normal(size=(5, 4))},
    "output": RANDOM.normal(size=(5, 4)),
    "layers": {
        "norm": {"scale": RANDOM.normal(size=4), "bias": RANDOM.normal(size=4)},
        "output": {"kernel": RANDOM.normal(size=(4, 6)), "bias": RANDOM.normal(size=6)},
    },
}
PARAMS = jax.tree.map(lambda leaf: leaf.astype(np.float32), PARAMS)
ZEROS = jax.tree.map(np.zeros_like, PARAMS)
GRADIENTS = [jax.tree.map(lambda leaf: RANDOM.normal(size=leaf.shape).astype(np.float32), PARAMS) for _ in range(3)]


def norm(tree):
    return jnp.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(tree)))


def updates_of(config, gradients, params=PARAMS, steps=10):
    """The update after each gradient, with the parameters kept where they are."""
    optimizer = make_optimizer(config, steps)
    update, state = jax.jit(optimizer.update), optimizer.init(params)
    updates = []
    for gradient in gradients:
        update_of_step, state = update(gradient, state, params)
        updates.append(update_of_step)
    return updates


def first_moments(config, gradients):
    moment = 0
    for gradient in gradients:
        moment = config.b1 * moment + (1 - config.b1) * gradient
        yield moment


def adam_directions(config, gradients):
    second = 0
    for step, (gradient, first) in enumerate(zip(gradients, first_moments(config, gradients), strict=True), 1):
        second = config.b2 * second + (1 - config.b2) * gradient**2
        yield first / (1 - config.b1**step) / (np.sqrt(second / (1 - config.b2**step)) + config.epsilon)


def momentum_directions(config, gradients):
    moment = 0
    for gradient in gradients:
        moment = config.b1 * moment + gradient
        yield moment


def lion_directions(config, gradients):
    moment = 0
    for gradient in gradients:
        yield np.sign(config.b1 * moment + (1 - config.b1) * gradient)
        moment = config.b2 * moment + (1 - config.b2) * gradient


DIRECTIONS = {
    "sgd": lambda config, gradients: gradients,
    "momentum": momentum_directions,
    "adam": adam_directions,
    "adamw": adam_directions,
    "lion": lion_directions,
}


@pytest.mark.parametrize("name", DIRECTIONS)
def test_updates_equal_the_formula(name):
    config = dataclasses.replace(PLAIN, name=name, b1=0.8, b2=0.9, epsilon=1e-3)
    updates = updates_of(config, GRADIENTS)
    for path in (("output",), ("layers", "norm", "scale")):
        pick = lambda tree: functools.reduce(lambda node, key: node[key], path, tree)  # noqa: B023, E731
        directions = DIRECTIONS[name](config, [pick(gradient) for gradient in GRADIENTS])
        for update, direction in zip(updates, directions, strict=True):
            np.testing.assert_allclose(pick(update), -0.01 * direction, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_two_steps_lower_a_loss(name):
    optimizer = make_optimizer(dataclasses.replace(PLAIN, name=name, clip_norm=1.0, weight_decay=0.1), 2)

    @jax.jit
    def step(params, state):
        loss, gradients = jax.value_and_grad(lambda params: 0.5 * norm(params) ** 2)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    params, state, losses = PARAMS, optimizer.init(PARAMS), []
    for _ in range(3):
        params, state, loss = step(params, state)
        losses.append(loss)
    assert losses[0] > losses[1] > losses[2]
    for before, after in zip(jax.tree.leaves(PARAMS), jax.tree.leaves(params), strict=True):
        assert (np.asarray(before) != np.asarray(after)).all(), "a parameter did not move"


@pytest.mark.parametrize(
    ("name", "decay_embeddings"), [(name, False) for name in OPTIMIZERS] + [("adamw", True), ("muon", True)]
)
def test_weight_decay_does_not_change_norms_and_biases(name, decay_embeddings):
    config = dataclasses.replace(PLAIN, name=name, weight_decay=0.5, decay_embeddings=decay_embeddings)
    updates = updates_of(config, [ZEROS])[0]
    if name == "adam":
        chex.assert_trees_all_equal(updates, ZEROS)
        return
    of_embeddings = (config.adam_learning_rate if name == "muon" else 1) if decay_embeddings else 0
    expected = jax.tree.map(np.zeros_like, PARAMS)
    expected["layers"]["output"]["kernel"] = -0.01 * 0.5 * PARAMS["layers"]["output"]["kernel"]
    expected["output"] = -0.01 * 0.5 * of_embeddings * PARAMS["output"]
    expected["token_embedding"]["embedding"] = -0.005 * of_embeddings * PARAMS["token_embedding"]["embedding"]
    chex.assert_trees_all_close(updates, expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("values", [{}, {"tie_embeddings": False, "scan_layers": True, "activation": "swiglu"}])
def test_decay_mask_of_a_model(values):
    model = DecoderLM(ModelConfig(vocab_size=7, layers=1, width=8, heads=2, bias=True, **values))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    for decay_embeddings in (True, False):
        masked = jax.tree_util.tree_leaves_with_path(decay_mask(shapes, decay_embeddings))
        decayed = {path[-1].key for path, decays in masked if decays}
        kept = {path[-1].key for path, decays in masked if not decays}
        embeddings = {"embedding"} | ({"output"} if values else set())
        assert decayed == {"kernel"} | (embeddings if decay_embeddings else set())
        assert kept == {"scale", "bias"} | (set() if decay_embeddings else embeddings)


def test_decay_mask_of_a_recurrent_model_has_both_of_its_matrices():
    config = ModelConfig(architecture="lstm", vocab_size=7, layers=1, width=8, recurrent_width=8)
    shapes = jax.eval_shape(make_body(config).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    masked = jax.tree_util.tree_leaves_with_path(decay_mask(shapes, decay_embeddings=False))
    decayed = {"/".join(part.key for part in path) for path, decays in masked if decays}
    assert {path.split("/")[-1] for path in decayed} == {"kernel", "state_kernel"}


def test_penalty_equals_its_formula():
    config = OptimizerConfig(l1=0.3, l2=0.7, decay_embeddings=False)
    kernel = PARAMS["layers"]["output"]["kernel"]
    np.testing.assert_allclose(penalty(PARAMS, config), 0.3 * abs(kernel).sum() + 0.35 * (kernel**2).sum(), rtol=1e-5)
    decayed = [kernel, PARAMS["output"], PARAMS["token_embedding"]["embedding"]]
    expected = sum(0.3 * abs(leaf).sum() + 0.35 * (leaf**2).sum() for leaf in decayed)
    np.testing.assert_allclose(penalty(PARAMS, OptimizerConfig(l1=0.3, l2=0.7)), expected, rtol=1e-5)


def test_gradients_beyond_the_norm_are_scaled_down_together():
    sgd, length = dataclasses.replace(PLAIN, name="sgd"), float(norm(GRADIENTS[0]))
    unclipped = updates_of(sgd, GRADIENTS[:1])[0]
    chex.assert_trees_all_close(unclipped, jax.tree.map(lambda leaf: -0.01 * leaf, GRADIENTS[0]), rtol=1e-5)
    clipped = updates_of(dataclasses.replace(sgd, clip_norm=length / 4), GRADIENTS[:1])[0]
    chex.assert_trees_all_close(clipped, jax.tree.map(lambda leaf: leaf / 4, unclipped), rtol=1e-4)
    untouched = updates_of(dataclasses.replace(sgd, clip_norm=length * 1.01), GRADIENTS[:1])[0]
    chex.assert_trees_all_close(untouched, unclipped, rtol=1e-6)


def test_clipping_of_a_zero_gradient_is_zero():
    chex.assert_trees_all_equal(updates_of(dataclasses.replace(PLAIN, name="sgd", clip_norm=1.0), [ZEROS])[0], ZEROS)


def test_muon_orthogonalizes_kernels_and_leaves_the_rest_to_adam():
    muon = dataclasses.replace(PLAIN, name="muon", adam_learning_rate=0.3)
    updates = updates_of(muon, GRADIENTS[:1])[0]
    kernel = np.asarray(updates["layers"]["output"]["kernel"])
    singular_values = np.linalg.svd(kernel / 0.01, compute_uv=False)
    # Five Newton-Schulz steps bring singular values near 1, by design not closer.
    np.testing.assert_allclose(singular_values, singular_values.mean(), rtol=0.35)
    assert np.linalg.cond(GRADIENTS[0]["layers"]["output"]["kernel"]) > 2
    adam = updates_of(dataclasses.replace(PLAIN, name="adam", learning_rate=0.003), GRADIENTS[:1])[0]
    for tree in (updates, adam):
        del tree["layers"]["output"]["kernel"]
    chex.assert_trees_all_close(updates, adam, rtol=1e-5)


def test_muon_treats_scanned_layers_as_each_alone():
    muon, kernels = dataclasses.replace(PLAIN, name="muon"), RANDOM.normal(size=(3, 4, 6)).astype(np.float32)
    tree = lambda kernel: {"layers": {"kernel": kernel, "bias": np.ones(6, np.float32)}}  # noqa: E731
    stacked = updates_of(muon, [tree(kernels)], tree(kernels))[0]["layers"]["kernel"]
    for layer in range(3):
        alone = updates_of(muon, [tree(kernels[layer])], tree(kernels[layer]))[0]["layers"]["kernel"]
        np.testing.assert_allclose(stacked[layer], alone, rtol=1e-3, atol=1e-6)


def test_muon_leaves_heads_to_adam():
    tree = {"head": {"kernel": RANDOM.normal(size=(4, 3)).astype(np.float32)}, **PARAMS}
    muon = dataclasses.replace(PLAIN, name="muon", adam_learning_rate=0.3)
    adam = dataclasses.replace(PLAIN, name="adam", learning_rate=0.003)
    of_muon, of_adam = (updates_of(config, [tree], tree)[0] for config in (muon, adam))
    chex.assert_trees_all_close(of_muon["head"], of_adam["head"], rtol=1e-5)


def shapes_of_classifier(architecture, **values):
    heads = {} if architecture == "lstm" else {"heads": 2}
    config = ModelConfig(architecture, vocab_size=7, width=8, max_length=4, **{"layers": 2} | heads | values)
    ones_BT = jnp.ones((1, 2), jnp.int32)
    return jax.eval_shape(SequenceClassifier(config, 3).init, jax.random.key(0), ones_BT, ones_BT, ones_BT)["params"]


def shapes_of_pairs(**values):
    config = ModelConfig("encoder_decoder", vocab_size=7, layers=2, width=8, heads=2, max_length=4, **values)
    ones_BT = jnp.ones((1, 2), jnp.int32)
    return jax.eval_shape(make_language_model(config).init, jax.random.key(0), ones_BT, ones_BT)["params"]


def paths_of(params):
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(params)]


SHAPES = {
    "unrolled": lambda: shapes_of_classifier("decoder", layers=3),
    "scanned": lambda: shapes_of_classifier("decoder", layers=3, scan_layers=True),
    "encoder": lambda: shapes_of_classifier(
        "encoder", segment_types=2, normalization_place="after", normalize_embeddings=True
    ),
    "recurrent": lambda: shapes_of_classifier("lstm"),
    "pairs": lambda: shapes_of_pairs(decoder_layers=3, positions="relative", tie_embeddings=False),
}
DEPTHS = {
    "unrolled": {
        "head/": 0,
        "body/decoder/final_norm": 0,
        "body/decoder/layer_2/": 1,
        "body/decoder/layer_1/": 2,
        "body/decoder/layer_0/": 3,
        "body/position_embedding": 4,
        "body/token_embedding": 4,
    },
    "scanned": {
        "head/": 0,
        "body/decoder/final_norm": 0,
        "body/decoder/layers/": [3, 2, 1],
        "body/position_embedding": 4,
        "body/token_embedding": 4,
    },
    "encoder": {
        "head/": 0,
        "body/pooler": 0,
        "body/encoder/layer_1/": 1,
        "body/encoder/layer_0/": 2,
        "body/type_embedding": 3,
        "body/embedding_norm": 3,
        "body/position_embedding": 3,
        "body/token_embedding": 3,
    },
    "recurrent": {
        "head/": 0,
        "body/recurrent/layer_1/": 1,
        "body/recurrent/layer_0/": 2,
        "body/token_embedding": 3,
    },
    "pairs": {
        "output": 0,
        "encoder/final_norm": 0,
        "decoder/final_norm": 0,
        "encoder/layer_1/": 1,
        "encoder/layer_0/": 2,
        "decoder/layer_2/": 1,
        "decoder/layer_1/": 2,
        "decoder/layer_0/": 3,
        "encoder/relative_positions/embedding": 4,
        "decoder/relative_positions/embedding": 4,
        "token_embedding": 4,
    },
}


@pytest.mark.parametrize("name", DEPTHS)
def test_layers_learn_the_slower_the_deeper_they_are(name):
    shapes, config = SHAPES[name](), OptimizerConfig(layer_decay=0.5)
    seen = set()
    for path in paths_of(shapes):
        part = next(part for part in DEPTHS[name] if path.startswith(part))
        seen.add(part)
        expected = 0.5 ** np.array(DEPTHS[name][part], np.float32)
        np.testing.assert_allclose(update_factor(path, shapes, config), expected, err_msg=path)
    assert seen == DEPTHS[name].keys()


def stack(layers):
    """Parameters of a model whose layers have these kernels, unrolled if they are a list and scanned if an array."""
    named = {f"layer_{i}": {"kernel": kernel} for i, kernel in enumerate(layers)}
    body = {"decoder": {"layers": {"kernel": layers}} if isinstance(layers, np.ndarray) else named}
    return {"body": body | PARAMS["token_embedding"], "head": {"kernel": np.ones((4, 2), np.float32)}}


@pytest.mark.parametrize("name", ["adamw", "lion", "momentum"])
def test_a_layer_decay_scales_the_whole_update(name):
    """Also that of the weight decay, and also under a rule to which the size of gradients means nothing."""
    plain = dataclasses.replace(PLAIN, name=name, weight_decay=0.1, clip_norm=1.0)
    decayed = dataclasses.replace(plain, layer_decay=0.5)
    kernels = RANDOM.normal(size=(3, 4, 4)).astype(np.float32)
    (whole,), (slower,) = (updates_of(config, [stack(kernels)], stack(kernels)) for config in (plain, decayed))
    chex.assert_trees_all_close(slower["head"], whole["head"], rtol=1e-6)
    np.testing.assert_allclose(slower["body"]["embedding"], whole["body"]["embedding"] / 16, rtol=1e-6)
    scanned, at_full_rate = (updates["body"]["decoder"]["layers"]["kernel"] for updates in (slower, whole))
    np.testing.assert_allclose(scanned, at_full_rate / np.array([8, 4, 2])[:, None, None], rtol=1e-6)
    unrolled = updates_of(decayed, [stack([*kernels])], stack([*kernels]))[0]["body"]["decoder"]
    for i in range(3):
        np.testing.assert_allclose(unrolled[f"layer_{i}"]["kernel"], scanned[i], rtol=1e-5)


FREEZE = ("embedding", "^layers/norm/")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_frozen_stays_bit_for_bit_and_the_rest_moves(name):
    config = OptimizerConfig(name, 0.1, "constant", warmup_steps=0, weight_decay=0.0 if name == "adam" else 0.5)
    config = dataclasses.replace(config, freeze=FREEZE, layer_decay=0.9)
    optimizer = make_optimizer(config, 10)

    @jax.jit
    def step(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, optimizer.init(PARAMS)
    for gradients in GRADIENTS:
        params, state = step(params, state, gradients)
    for path, before, after in zip(paths_of(PARAMS), *map(jax.tree.leaves, (PARAMS, params)), strict=True):
        if path.startswith(("token_embedding/", "layers/norm/")):
            np.testing.assert_array_equal(after, before, err_msg=path)
        else:
            assert (np.asarray(after) != before).all(), path


def test_the_frozen_have_no_part_in_the_norm_that_is_clipped():
    sgd = dataclasses.replace(PLAIN, name="sgd", clip_norm=0.1)
    gradients = GRADIENTS[0] | {"token_embedding": {"embedding": np.full((5, 4), 1e6, np.float32)}}
    frozen = updates_of(dataclasses.replace(sgd, freeze=("embedding",)), [gradients])[0]
    rest = {name: tree for name, tree in GRADIENTS[0].items() if name != "token_embedding"}
    alone = updates_of(sgd, [rest], {name: PARAMS[name] for name in rest})[0]
    chex.assert_trees_all_close({name: frozen[name] for name in rest}, alone, rtol=1e-5)


def test_patterns_that_freeze_nothing_or_everything_are_errors():
    check_freeze(PARAMS, OptimizerConfig(freeze=FREEZE))
    with pytest.raises(
        UserError, match=r"config.optimizer.freeze: 'decoder' matches no parameter; parameters are .*layers/nor"
    ):
        check_freeze(PARAMS, OptimizerConfig(freeze=("embedding", "decoder")))
    with pytest.raises(UserError, match=r"config.optimizer.freeze leaves no parameter to train"):
        check_freeze(PARAMS, OptimizerConfig(freeze=("embedding", "output", "layers")))


STEPS, PEAK = 40, 0.5


def rates(name, warmup_steps, **values):
    """The rate at every step of a run and at its end, where `steps` would be the next one."""
    config = OptimizerConfig(schedule=name, warmup_steps=warmup_steps, learning_rate=PEAK, **values)
    return np.asarray(jax.vmap(make_schedule(config, STEPS))(jnp.arange(STEPS + 1)))


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_warm_up_from_a_first_step_that_moves(name):
    warm, cold = rates(name, 9), rates(name, 0)
    np.testing.assert_allclose(warm[:10], PEAK * np.arange(1, 11) / 10, rtol=1e-5)
    np.testing.assert_allclose(cold[0], PEAK, rtol=1e-6)
    for rate, warmup in ((warm, 9), (cold, 0)):
        assert (np.diff(rate[warmup:]) <= 1e-7).all(), "the rate rises after warm-up"
        assert (rate > 0).all()
        np.testing.assert_allclose(rate.max(), PEAK, rtol=1e-6)


@pytest.mark.parametrize("warmup", [0, 10])
def test_shapes_of_schedules(warmup):
    progress = np.arange(STEPS + 1 - warmup) / (STEPS - warmup)
    shapes = {
        "constant": np.ones_like(progress),
        "linear": 1 - 0.8 * progress,
        "cosine": 0.2 + 0.8 * (1 + np.cos(math.pi * progress)) / 2,
        "inverse_square_root": np.sqrt(max(warmup, 1) / (np.arange(STEPS + 1 - warmup) + max(warmup, 1))),
        "warmup_stable_decay": np.minimum(1, 0.2 + 0.8 * (1 - progress) / 0.3),
    }
    assert shapes.keys() == set(SCHEDULES)
    for name, shape in shapes.items():
        rate = rates(name, warmup, final_learning_rate=0.2, decay_fraction=0.3)
        np.testing.assert_allclose(rate[warmup:], PEAK * shape, rtol=1e-4, err_msg=name)


def test_a_warmup_longer_than_the_run_is_said():
    config = OptimizerConfig(warmup_steps=100)
    assert warmup_note(config, 101) == ""
    assert "warmup_steps=100 steps, but training lasts 50: it only reaches 50%" in warmup_note(config, 50)


def test_the_optimizer_follows_the_schedule():
    config = dataclasses.replace(PLAIN, name="sgd", schedule="linear", warmup_steps=2, final_learning_rate=0.0)
    ones = jax.tree.map(np.ones_like, PARAMS)
    moved = [-update["output"][0, 0] for update in updates_of(config, [ones] * 5, steps=5)]
    np.testing.assert_allclose(moved, 0.01 * np.array([1 / 3, 2 / 3, 1, 2 / 3, 1 / 3]), rtol=1e-5)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"name": "sophia"}, "config.optimizer.name must be one of sgd, momentum, adam, adamw"),
        ({"schedule": "step"}, "config.optimizer.schedule must be one of constant, cosine, linear"),
        ({"learning_rate": 0.0}, "config.optimizer.learning_rate must be positive, got 0.0"),
        ({"warmup_steps": -1}, "config.optimizer.warmup_steps must not be negative, got -1"),
        ({"weight_decay": -0.1}, "config.optimizer.weight_decay must not be negative, got -0.1"),
        ({"clip_norm": -1.0}, "config.optimizer.clip_norm must not be negative, got -1.0"),
        ({"l1": -1.0}, "config.optimizer.l1 must not be negative"),
        ({"l2": -1.0}, "config.optimizer.l2 must not be negative"),
        ({"epsilon": -1.0}, "config.optimizer.epsilon must be positive"),
        ({"final_learning_rate": -0.1}, "config.optimizer.final_learning_rate must not be negative"),
        ({"b1": 1.0}, "config.optimizer.b1 must be in [0, 1), got 1.0"),
        ({"b2": -0.1}, "config.optimizer.b2 must be in [0, 1), got -0.1"),
        ({"ema_decay": 1.0}, "config.optimizer.ema_decay must be in [0, 1), got 1.0"),
        ({"decay_fraction": 0.0}, "config.optimizer.decay_fraction must be in (0, 1], got 0.0"),
        ({"decay_fraction": 1.1}, "config.optimizer.decay_fraction must be in (0, 1], got 1.1"),
        ({"layer_decay": 0.0}, "config.optimizer.layer_decay must be in (0, 1], got 0.0"),
        ({"layer_decay": 1.5}, "config.optimizer.layer_decay must be in (0, 1], got 1.5"),
        ({"freeze": "body"}, "config.optimizer.freeze must be a tuple of patterns, got 'body'"),
        ({"freeze": ("bo(dy",)}, "config.optimizer.freeze: 'bo(dy' is not a regular expression"),
    ],
)
def test_bad_values_are_named(values, words):
    with pytest.raises(UserError) as caught:
        OptimizerConfig(**values)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
