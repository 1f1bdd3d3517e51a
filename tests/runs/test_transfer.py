"""Parameters from another run: those that fit are taken over, the rest is told, and a misfit is an error."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.console import Console
from lm.errors import UserError
from lm.models.build import make_language_model
from lm.models.heads import SequenceClassifier
from lm.modules.config import ModelConfig
from lm.runs.trained_run import load_run
from lm.runs.transfer import Transfer, grouped, transfer, with_embedding
from lm.runs.work_directory import WorkDirectory
from tests.tiny import replace, run, tiny_config

ENCODER = ModelConfig("encoder", vocab_size=11, layers=2, width=8, heads=2, max_length=6, segment_types=2)


def filled(model, seed):
    """Random parameters of a model that is never compiled."""
    ones_BT = jnp.ones((1, 2), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), ones_BT, ones_BT, ones_BT)["params"]
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32), shapes)


def by_path(params):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in jax.tree.leaves_with_path(params)
    }


PRETRAINED = filled(make_language_model(ENCODER), 0)


def test_layers_that_are_kept_otherwise_are_not_left_out():
    stacked = filled(make_language_model(dataclasses.replace(ENCODER, scan_layers=True)), 1)
    with pytest.raises(UserError, match=r"its layers one by one: set config\.model\.scan_layers=False"):
        transfer(stacked, PRETRAINED, "runs/bert")
    with pytest.raises(UserError, match=r"its layers stacked: set config\.model\.scan_layers=True"):
        transfer(PRETRAINED, stacked, "runs/bert")


def test_a_pretrained_encoder_is_the_body_of_a_classifier():
    fresh = filled(SequenceClassifier(ENCODER, 3), 1)
    moved = transfer(fresh, PRETRAINED, "runs/bert")
    assert jax.tree.structure(moved.params) == jax.tree.structure(fresh)
    theirs, before = by_path(PRETRAINED), by_path(fresh)
    for path, leaf in by_path(moved.params).items():
        expected = theirs[path.removeprefix("body/")] if path in moved.loaded else before[path]
        np.testing.assert_array_equal(leaf, expected, err_msg=path)
    assert set(moved.new) == {"body/pooler/kernel", "head/kernel", "head/bias"}
    assert set(moved.loaded) == before.keys() - set(moved.new)
    assert moved.left
    assert all(path.startswith("prediction_head/") for path in moved.left)


def test_a_classifier_is_a_body_for_pretraining():
    moved = transfer(PRETRAINED, filled(SequenceClassifier(ENCODER, 3), 1), "runs/sst2")
    assert set(moved.left) == {"body/pooler/kernel", "head/kernel", "head/bias"}
    assert all(path.startswith("prediction_head/") for path in moved.new)


@pytest.mark.parametrize(("classes", "new"), [(3, ()), (4, ("head/bias", "head/kernel"))])
def test_a_head_for_as_many_classes_is_taken_over_and_another_is_new(classes, new):
    source, fresh = filled(SequenceClassifier(ENCODER, 3), 1), filled(SequenceClassifier(ENCODER, classes), 2)
    moved = transfer(fresh, source, "runs/sst2")
    assert moved.new == moved.left == new
    used = fresh if new else source
    np.testing.assert_array_equal(moved.params["head"]["kernel"], used["head"]["kernel"])


def test_parameters_come_in_the_dtype_of_the_model():
    fresh = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PRETRAINED)
    moved = transfer(fresh, PRETRAINED, "runs/bert")
    assert {leaf.dtype for leaf in jax.tree.leaves(moved.params)} == {jnp.dtype("bfloat16")}


def test_a_misfit_names_parameters_and_shapes():
    fresh = jax.tree.map(np.copy, PRETRAINED)
    fresh["token_embedding"]["embedding"] = np.zeros((13, 8))
    with pytest.raises(UserError) as caught:
        transfer(fresh, PRETRAINED, "runs/bert")
    assert str(caught.value) == (
        "config.init_from=runs/bert doesn't fit this model: token_embedding/embedding is (13, 8) here and (11, 8) there"
    )


def test_nothing_in_common_is_an_error():
    with pytest.raises(
        UserError, match=r"config.init_from=runs/other has no parameter of this model: is it of another"
    ):
        transfer({"decoder": {"kernel": np.zeros(2)}}, {"encoder": {"kernel": np.zeros(2)}}, "runs/other")


def test_layers_read_as_one():
    paths = [f"body/encoder/layer_{i}/{name}" for i in range(12) for name in ("attention/kernel", "norm/scale")]
    assert grouped((*paths, "head/bias", "decoder/layer_3/norm/scale")) == [
        "body/encoder/layer_0-11/attention/kernel",
        "body/encoder/layer_0-11/norm/scale",
        "head/bias",
        "decoder/layer_3/norm/scale",
    ]
    assert grouped(()) == []


def test_it_prints_which_parameters_were_loaded():
    console = Console(record=True, width=200, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    Transfer({}, ("body/layer_0/a", "body/layer_1/a"), ("head/bias",), ()).print(console, "runs/bert, step 7")
    assert console.export_text() == (
        "parameters from runs/bert, step 7:\n  loaded 2: body/layer_0-1/a\n  new 1: head/bias\n  unused 0: none\n"
    )


def test_word_vectors_replace_only_the_token_embedding():
    fresh = filled(SequenceClassifier(ENCODER, 3), 1)
    table_VD = np.arange(88, dtype=np.float64).reshape(11, 8)
    before, after = by_path(fresh), by_path(with_embedding(fresh, table_VD))
    for path, leaf in after.items():
        expected = table_VD if path == "body/token_embedding/embedding" else before[path]
        np.testing.assert_array_equal(leaf, expected, err_msg=path)
        assert leaf.dtype == np.float32
    with pytest.raises(UserError, match=r"vectors of 50 numbers and config.model.width is 8: set it to 50"):
        with_embedding(fresh, np.zeros((11, 50)))


@pytest.mark.slow
def test_pretraining_begins_with_the_parameters_and_the_tokenizer_of_another_run(tmp_path):
    config = tiny_config(tmp_path, steps=2, evaluate_every=2)
    config = replace(config, model={"layers": 1, "dropout": 0.0}, samples={"prompts": ()})
    first = run(config, tmp_path / "source")
    source = load_run(WorkDirectory(tmp_path / "source"), "last")
    # It doesn't move, so that what it ends with is what it began with.
    still = {"learning_rate": 1e-30, "warmup_steps": 0, "weight_decay": 0.0}
    later = replace(config, init_from=str(tmp_path / "source"), init_checkpoint="last", seed=7, optimizer=still)
    outcome = run(later, tmp_path / "later")
    average = by_path(source.params)
    for params in (outcome.state.params, outcome.state.averaged_params):
        for path, leaf in by_path(params).items():
            np.testing.assert_array_equal(leaf, average[path], err_msg=path)
    last = by_path(jax.device_get(first.state.params))
    assert all((average[path] != last[path]).any() for path in average), "the average is what a run ends with"
    assert (tmp_path / "later/tokenizer.json").read_bytes() == (tmp_path / "source/tokenizer.json").read_bytes()

    with pytest.raises(
        UserError, match=r"config.init_from=.*source doesn't fit this model: .* is \(16, 32\) here and \(16, 48\)"
    ):
        run(replace(later, model={"kv_heads": 1}), tmp_path / "other")
    assert not (tmp_path / "other").exists()
