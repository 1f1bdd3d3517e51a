"""What every objective promises: batches that depend on their step alone, sums that add up, and something to learn."""

import dataclasses

import chex
import jax
import numpy as np
import optax
import pytest

from lm.errors import UserError
from lm.objectives.no_objective import NoObjective
from lm.objectives.objective import ObjectiveConfig, TextProperties
from lm.objectives.registry import OBJECTIVES, check_objective, make_task, special_tokens
from tests.objectives.toy_corpus import corpus_for, tokenizer_for, toy_model, toy_task

B = 16


# Each objective compiles a model of its own: of two that share most of their code one is quick.
_SLOW = ("masked", "span_corruption")


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[pytest.mark.slow] * (name in _SLOW)) for name in OBJECTIVES]
)
def objective(request):
    return ObjectiveConfig(name=request.param, sentinels=10)


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_a_batch_depends_only_on_its_step(objective):
    def batches(seed=5):
        return toy_task(objective).train_batches(corpus_for(objective), B, seed, random_offsets=True)

    known, fresh = batches(), batches()
    for step in (7, 0, 10**6):
        assert_equal(known[step], fresh[step])
    assert any((known[0][name] != known[1][name]).any() for name in known[0])
    other = batches(seed=6)[0]
    assert any((known[0][name] != other[name]).any() for name in other)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_hosts_share_a_batch(objective, split):
    task, corpus = toy_task(objective), corpus_for(objective)

    def batches(host=0, hosts=1):
        if split == "train":
            return task.train_batches(corpus, B, seed=0, host=host, hosts=hosts)
        return task.validation_batches(corpus, B, host=host, hosts=hosts)

    index = 3 if split == "train" else len(batches()) - 1
    parts = [batches(host, 4)[index] for host in range(4)]
    assert len(batches(1, 4)) == len(batches())
    assert_equal({name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, batches()[index])
    with pytest.raises(UserError, match="must be divisible by the number of hosts, 3"):
        batches(0, 3)


def test_arrays_lead_with_the_batch_and_have_one_shape(objective):
    task, corpus = toy_task(objective), corpus_for(objective)
    validation = task.validation_batches(corpus, B)
    shapes = [
        {name: (values.shape, values.dtype) for name, values in batch.items()}
        for batch in (task.train_batches(corpus, B, 0)[0], validation[0], validation[len(validation) - 1])
    ]
    assert shapes[0] == shapes[1] == shapes[2]
    assert all(shape[0] == B and str(dtype) in ("int32", "float32", "bool") for shape, dtype in shapes[0].values())
    length = task.model.config.max_length
    for batch in (validation[0], validation[len(validation) - 1]):
        assert all(batch[name].max() < length for name in batch if name.endswith("positions"))
        assert all(batch[name].max() < tokenizer_for(objective).vocab_size for name in batch)


def test_sequences_may_be_shorter_than_the_model_can_process(objective):
    task, corpus = toy_task(objective, 16), corpus_for(objective)
    longer = toy_model(objective, 32, sequence_length=16).config
    other = make_task(objective, longer, tokenizer_for(objective))
    assert_equal(other.train_batches(corpus, B, 0)[3], task.train_batches(corpus, B, 0)[3])
    assert_equal(other.validation_batches(corpus, B)[0], task.validation_batches(corpus, B)[0])


@pytest.fixture(scope="module")
def compiled(objective):
    """The task, its evaluation, its loss with gradients, and parameters."""
    corpus = corpus_for(objective)
    text = TextProperties.of(corpus, tokenizer_for(objective).vocab_size)
    task = make_task(objective, toy_model(objective).config, tokenizer_for(objective), text=text)
    gradient = jax.jit(jax.value_and_grad(task.loss, has_aux=True))
    return task, jax.jit(task.evaluate), gradient, jax.jit(task.init)(jax.random.key(0))


def test_sums_add_up_and_padding_counts_nowhere(objective, compiled):
    task, evaluate, gradient, params = compiled
    validation = task.validation_batches(corpus_for(objective), B)
    last = validation[len(validation) - 1]
    rows = evaluate(params, last)
    reliability = rows.pop("reliability")
    for kind, bins in reliability.items():
        assert bins.totals().count.sum() == last["weights"].sum(), kind
    empty = ~last["segments"].any(axis=1)
    assert empty.any()
    assert not any(np.any(np.asarray(values)[empty]) for values in rows.values())
    (total, sums), gradients = gradient(params, last, None)
    chex.assert_tree_all_finite(gradients)
    np.testing.assert_allclose(total, sums["objective"], rtol=1e-6)
    assert {"weight", "loss"} <= sums.keys() & rows.keys()
    for name in sums.keys() & rows.keys():
        np.testing.assert_allclose(np.sum(rows[name]), sums[name], rtol=1e-4, err_msg=name)
    assert {"accuracy", "confidence", "entropy"} <= rows.keys()


def test_documents_of_a_row_do_not_see_each_other(objective, compiled):
    task, evaluate, _, params = compiled
    batch = task.train_batches(corpus_for(objective), B, seed=0)[0]
    if batch["segments"].max() == 1:
        pytest.skip("all texts of a row belong together")
    at_places = "places" in batch
    segments = np.take_along_axis(batch["segments"], batch["places"], 1) if at_places else batch["segments"]
    first = batch | {"weights": batch["weights"] * (segments == 1)}
    other = dict(first)
    for name in {"inputs", "tokens"} & batch.keys():
        of_side = batch["input_segments" if name == "inputs" else "segments"]
        other[name] = np.where(of_side == 1, batch[name], (batch[name] + 1) % 250)
        assert (other[name] != batch[name]).any()
    params = jax.tree.map(lambda leaf: 5 * leaf, params)  # so that what is seen matters
    np.testing.assert_allclose(evaluate(params, other)["loss"], evaluate(params, first)["loss"], rtol=1e-5, atol=1e-5)


def test_it_learns(objective, compiled):
    task, _, gradient, params = compiled
    batches, optimizer = task.train_batches(corpus_for(objective), B, seed=0), optax.adam(1e-2)
    update = jax.jit(lambda state, gradients: _updated(optimizer, state, gradients))
    fixed = task.validation_batches(corpus_for(objective), B)[0]

    def loss(params):
        (_, sums), _ = gradient(params, fixed, None)
        return sums["loss"] / sums["weight"]

    state = params, optimizer.init(params)
    for step in range(30):
        _, gradients = gradient(state[0], batches[step], None)
        state = update(state, gradients)
    assert loss(state[0]) < 0.75 * loss(params)


def _updated(optimizer, state, gradients):
    updates, optimizer_state = optimizer.update(gradients, state[1])
    return optax.apply_updates(state[0], updates), optimizer_state


def test_a_task_needs_its_architecture(objective):
    config = toy_model(objective).config
    other = "encoder" if config.architecture != "encoder" else "decoder"
    with pytest.raises(UserError) as caught:
        make_task(objective, dataclasses.replace(config, architecture=other), tokenizer_for(objective))
    assert f"config.objective.name={objective.name} needs config.model.architecture={config.architecture}" in str(
        caught.value
    )


def test_special_tokens_are_what_the_tokenizer_lacks(objective):
    plain = tokenizer_for(ObjectiveConfig())
    names = special_tokens(objective)
    assert all(plain.special_id(name) is None for name in names)
    assert all(tokenizer_for(objective).special_id(name) is not None for name in names)
    if names:
        with pytest.raises(UserError, match="no special token"):
            make_task(objective, toy_model(objective).config, plain)


def test_only_causal_language_modelling_counts_bytes(objective):
    assert toy_task(objective).counts_bytes == (objective.name == "causal")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"name": "bert"}, "config.objective.name must be one of causal, prefix, masked, "),
        ({"masking": "words"}, "config.objective.masking must be one of token, whole_word, span; got 'words'"),
        ({"label_smoothing": 1.0}, "config.objective.label_smoothing must be in [0, 1), got 1.0"),
        ({"label_smoothing": -0.1}, "config.objective.label_smoothing must be in [0, 1), got -0.1"),
        ({"z_loss": -1e-4}, "config.objective.z_loss must not be negative, got -0.0001"),
        ({"loss_chunk": -1}, "config.objective.loss_chunk must not be negative, got -1"),
        ({"mask_rate": 0.0}, "config.objective.mask_rate must be between 0 and 1, got 0.0"),
        ({"noise_density": 1.0}, "config.objective.noise_density must be between 0 and 1, got 1.0"),
        ({"mean_span_length": 0.5}, "config.objective.mean_span_length must be at least 1, got 0.5"),
        ({"sentinels": 0}, "config.objective.sentinels must be at least 1, got 0"),
        ({"deletion_rate": 1.0}, "config.objective.deletion_rate must be in [0, 1), got 1.0"),
        ({"name": "none", "pooling": "last"}, "config.objective.pooling must be one of mean, first; got 'last'"),
        ({"permutation_rate": 1.5}, "config.objective.permutation_rate must be in [0, 1], got 1.5"),
    ],
)
def test_bad_values_are_named(values, words):
    with pytest.raises(UserError) as caught:
        check_objective(ObjectiveConfig(**values))
    assert words in str(caught.value)


# For each setting a value that isn't its default.
SETTINGS = {
    "label_smoothing": 0.1,
    "z_loss": 1e-4,
    "loss_chunk": 8,
    "mask_rate": 0.3,
    "masking": "span",
    "segmentation": "jieba",
    "noise_density": 0.3,
    "sentinels": 10,
    "mean_span_length": 5.0,
    "infilling_rate": 0.1,
    "deletion_rate": 0.1,
    "permutation_rate": 0.5,
    "pooler": True,
    "pooling": "first",
    "normalize": True,
}
OF_ALL = {"label_smoothing", "z_loss", "loss_chunk"}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_setting_is_refused_where_the_objective_does_not_use_it(name):
    assert set(SETTINGS) == {field.name for field in dataclasses.fields(ObjectiveConfig)} - {"name"}
    assert set(OBJECTIVES[name].settings) <= set(SETTINGS) - OF_ALL
    for setting, value in SETTINGS.items():
        config = ObjectiveConfig(name=name, **{setting: value})
        if setting in OF_ALL | set(OBJECTIVES[name].settings):
            check_objective(config)
            continue
        with pytest.raises(UserError) as caught:
            check_objective(config)
        assert f"config.objective.{setting} has no effect with config.objective.name={name}: leave it out" in str(
            caught.value
        )


def test_every_setting_is_of_some_objective_and_none_is_of_one_that_ignores_it():
    of_some = {setting for task in (*OBJECTIVES.values(), NoObjective) for setting in task.settings}
    assert of_some == set(SETTINGS) - OF_ALL
    ignored = {"causal": "mask_rate", "masked": "noise_density", "span_corruption": "infilling_rate"}
    assert not any(setting in OBJECTIVES[name].settings for name, setting in ignored.items())


def test_without_an_objective_nothing_is_learned_from_text():
    objective = ObjectiveConfig(name="none", pooler=True)
    config = toy_model(ObjectiveConfig(name="masked")).config
    task = make_task(objective, config, tokenizer_for(ObjectiveConfig(name="masked")))
    params = jax.eval_shape(task.init, jax.random.key(0))
    assert "pooler" in params
    assert "prediction_head" not in params
    with pytest.raises(UserError, match=r"config\.objective\.name=none learns nothing from text"):
        task.train_batches(corpus_for(ObjectiveConfig(name="masked")), B, seed=0)
