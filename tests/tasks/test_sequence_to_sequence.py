"""Sequence to sequence, with an encoder for the source or as one sequence."""

import dataclasses
import functools

import chex
import jax
import numpy as np
import optax
import pytest

from lm.data.config import TokenizerConfig
from lm.data.tokenizers import train_tokenizer
from lm.errors import UserError
from lm.tasks.sequence_to_sequence import SequenceToSequence
from lm.tasks.supervised import TaskConfig
from tests.tasks.tiny_pairs import (
    END,
    MAX_LENGTH,
    TOKENIZER,
    VOCAB,
    make_batch,
    random_params,
    tiny_model,
    unbatch,
)

CONFIG = TaskConfig(name="sequence_to_sequence", max_target_length=6, beams=1, label_smoothing=0.1)
TASKS = {
    name: SequenceToSequence(tiny_model(name, dropout=0.1), CONFIG, TOKENIZER)
    for name in ("encoder_decoder", "decoder")
}
ROWS = [
    {"source": source, "target": target, "place": f"pairs.jsonl:{line}"}
    for line, (source, target) in enumerate([("abc", "fe"), ("d", "abcd"), ("bad face", "a")], start=1)
]
LENGTHS = {"S": 10, "T": 14}
every_architecture = pytest.mark.parametrize("name", TASKS)


def ids(text):
    return TOKENIZER.encode(text)


@functools.cache
def params_of(name):
    return random_params(TASKS[name])


@functools.cache
def batch_of(name):
    return make_batch(TASKS[name], TASKS[name].encode(ROWS).examples, LENGTHS, filler=1)


@functools.cache
def compiled_loss(name):
    return jax.jit(TASKS[name].loss)


@functools.cache
def compiled_predict(name):
    return jax.jit(TASKS[name].predict)


@functools.cache
def compiled_logits(name):
    """The logits of a whole forward pass, [B, T, V], by the model's own method."""
    model = TASKS[name].model

    def logits(params, batch):
        if name == "decoder":
            return model.apply({"params": params}, batch["tokens"])
        return model.apply({"params": params}, batch["inputs"], batch["tokens"], batch["input_segments"])

    return jax.jit(logits)


def log_probs_of(name, batch):
    logits = np.asarray(compiled_logits(name)(params_of(name), batch), np.float64)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def test_an_encoder_reads_the_source():
    example = TASKS["encoder_decoder"].encode(ROWS).examples[0]
    np.testing.assert_array_equal(example["inputs"], [*ids("abc"), END])
    np.testing.assert_array_equal(example["input_segments"], [1, 1, 1, 1])
    np.testing.assert_array_equal(example["tokens"], [END, *ids("fe")])
    np.testing.assert_array_equal(example["targets"], [*ids("fe"), END])
    np.testing.assert_array_equal(example["weights"], [1, 1, 1])


def test_a_decoder_reads_source_and_target_as_one_sequence():
    example = TASKS["decoder"].encode(ROWS).examples[0]
    np.testing.assert_array_equal(example["tokens"], [END, *ids("abc"), END, *ids("fe")])
    np.testing.assert_array_equal(example["targets"], [*ids("abc"), END, *ids("fe"), END])
    np.testing.assert_array_equal(example["weights"], [0, 0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(example["tokens"][: example["source_length"]], [END, *ids("abc"), END])


@every_architecture
def test_a_prefix_comes_before_each_source(name):
    config = dataclasses.replace(CONFIG, prefix="fade ")
    prefixed = dataclasses.replace(TASKS[name], config=config).encode(ROWS[:1]).examples[0]
    written = TASKS[name].encode([ROWS[0] | {"source": "fade abc"}]).examples[0]
    chex.assert_trees_all_equal(prefixed, written)


@every_architecture
@pytest.mark.parametrize("column", ["source", "target"])
def test_texts_that_are_too_long_are_an_error_or_cut_and_counted(name, column):
    rows = [*ROWS, ROWS[0] | {column: "abcd" * 5, "place": "pairs.jsonl:9"}]
    with pytest.raises(UserError) as caught:
        TASKS[name].encode(rows)
    for words in (f"pairs.jsonl:9: the {column} has 2", "config.model.max_length=16", "config.task.truncate=True"):
        assert words in str(caught.value)
    cutting = dataclasses.replace(TASKS[name], config=dataclasses.replace(CONFIG, truncate=True))
    examples, cut, _ = cutting.encode(rows)
    assert cut == 1
    chex.assert_trees_all_equal(examples[:3], TASKS[name].encode(ROWS).examples)
    arrays = [value for value in examples[3].values() if np.ndim(value)]
    assert MAX_LENGTH - 1 <= max(map(len, arrays)) <= MAX_LENGTH or column == "source"
    assert max(map(len, arrays)) <= MAX_LENGTH
    # A target that is cut does not end there, and after a source that is cut there is room for a whole target.
    assert (examples[3]["targets"][-1] == END) == (column == "source")
    if column == "source" and name == "decoder":
        assert examples[3]["source_length"] + CONFIG.max_target_length - 1 == MAX_LENGTH


@pytest.mark.parametrize(("name", "most"), [("encoder_decoder", MAX_LENGTH), ("decoder", MAX_LENGTH - 2)])
def test_the_longest_target_must_fit_the_model(name, most):
    task = TASKS[name]
    dataclasses.replace(task, config=dataclasses.replace(CONFIG, max_target_length=most))
    with pytest.raises(UserError, match=rf"config\.task.max_target_length={most + 1} leaves no room"):
        dataclasses.replace(task, config=dataclasses.replace(CONFIG, max_target_length=most + 1))


def test_what_cannot_work_is_named():
    endless = train_tokenizer(TokenizerConfig(kind="characters", end_of_text=False), lambda split: ["ab"])
    with pytest.raises(UserError, match=r"config\.tokenizer\.end_of_text=True"):
        SequenceToSequence(tiny_model("decoder"), CONFIG, endless)
    with pytest.raises(UserError, match=r"config\.model\.architecture=encoder does not generate text"):
        SequenceToSequence(tiny_model("encoder"), CONFIG, TOKENIZER)


@every_architecture
def test_the_loss_equals_its_definition(name):
    batch, log_probs_BTV = batch_of(name), log_probs_of(name, batch_of(name))
    total, sums = compiled_loss(name)(params_of(name), batch, None)
    expected = {"weight": 0.0, "loss": 0.0, "objective": 0.0}
    for row, target in enumerate(row["target"] for row in ROWS):
        first = 0 if name == "encoder_decoder" else len(ROWS[row]["source"]) + 1
        for position, token in enumerate([*ids(target), END], start=first):
            log_probs_V = log_probs_BTV[row, position]
            expected["weight"] += 1
            expected["loss"] -= log_probs_V[token]
            expected["objective"] -= 0.9 * log_probs_V[token] + 0.1 * log_probs_V.mean()
    chex.assert_trees_all_close(dict(sums), expected, rtol=1e-4)
    np.testing.assert_allclose(total, expected["objective"], rtol=1e-4)
    _, first_alone = compiled_loss(name)(params_of(name), batch | {"row_weights": np.eye(4, dtype=np.float32)[0]}, None)
    assert first_alone["weight"] == len(ROWS[0]["target"]) + 1


@every_architecture
def test_padding_and_what_has_no_weight_never_count(name):
    batch, random = batch_of(name), np.random.default_rng(0)
    other = {key: value.copy() for key, value in batch.items()}
    for key in ("inputs", "tokens", "targets"):
        if key in batch:
            padding = {"inputs": batch.get("input_segments"), "targets": batch["weights"]}.get(key)
            if padding is None:  # tokens after the last target
                padding = np.cumsum(batch["weights"][:, ::-1], axis=1)[:, ::-1]
            noise = random.integers(VOCAB, size=batch[key].shape)
            other[key] = np.where(padding == 0, noise, batch[key]).astype(np.int32)
            assert (other[key] != batch[key]).any()
    params = params_of(name)
    chex.assert_trees_all_close(
        compiled_loss(name)(params, other, None), compiled_loss(name)(params, batch, None), rtol=1e-5
    )
    one, two = compiled_predict(name)(params, other), compiled_predict(name)(params, batch)
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[:3], one), jax.tree.map(lambda x: x[:3], two), rtol=1e-4)


@every_architecture
def test_generation_equals_the_likeliest_token_of_a_full_forward_pass(name):
    batch, params = batch_of(name), params_of(name)
    outputs = compiled_predict(name)(params, batch)
    starts = np.zeros(3, int) if name == "encoder_decoder" else batch["source_length"][:3] - 1
    growing = batch | {"tokens": np.full((4, MAX_LENGTH), END, np.int32)}
    if name == "decoder":
        for row, start in enumerate(starts):
            growing["tokens"][row, : start + 1] = batch["tokens"][row, : start + 1]
    log_probs, active = np.zeros((3, 6)), np.ones(3, bool)
    for n in range(6):
        logits = np.asarray(compiled_logits(name)(params, growing), np.float64)[range(3), starts + n, :VOCAB]
        chosen = logits.argmax(axis=-1)
        log_probs = logits[range(3), chosen] - np.log(np.exp(logits).sum(axis=-1))
        for row in np.flatnonzero(active):
            assert outputs["generated"][row, n] == chosen[row]
            np.testing.assert_allclose(outputs["log_probs"][row, n], log_probs[row], rtol=1e-3, atol=1e-4)
            if n + starts[row] + 1 < MAX_LENGTH:
                growing["tokens"][row, n + starts[row] + 1] = chosen[row]
        active &= chosen != END
        np.testing.assert_array_equal(outputs["lengths"][:3] > n + 1, active & (n < 5))
    assert outputs["lengths"][3] == 1, "a row that fills the batch keeps others waiting"


@every_architecture
def test_what_is_generated_does_not_depend_on_the_target(name):
    other_rows = [row | {"target": target} for row, target in zip(ROWS, ("cab", "", "ff"), strict=True)]
    other = make_batch(TASKS[name], TASKS[name].encode(other_rows).examples, LENGTHS, filler=1)
    one, two = (compiled_predict(name)(params_of(name), batch) for batch in (other, batch_of(name)))
    np.testing.assert_array_equal(one["generated"][:3], two["generated"][:3])
    assert (np.abs(one["nll"] - two["nll"])[:3] > 1e-3).all()


@every_architecture
def test_perplexity_comes_from_the_loss(name):
    outputs = unbatch(compiled_predict(name)(params_of(name), batch_of(name)), 3)
    _, sums = compiled_loss(name)(params_of(name), batch_of(name), None)
    results = TASKS[name].results(ROWS, TASKS[name].encode(ROWS).examples, outputs)
    np.testing.assert_allclose(results.metrics["perplexity"].value, np.exp(sums["loss"] / sums["weight"]), rtol=1e-5)


def test_results_of_known_outputs():
    task = TASKS["encoder_decoder"]

    def output(text, ended, probability):
        tokens = [*ids(text), END][: len(text) + ended]
        padded = np.array([*tokens, *[0] * (6 - len(tokens))], np.int32)
        log_probs = np.where(np.arange(6) < len(tokens), np.log(probability), 0).astype(np.float32)
        return {"generated": padded, "log_probs": log_probs, "lengths": len(tokens), "nll": 2.0, "tokens": 4.0}

    perfect = [output(row["target"], True, 0.5) for row in ROWS]
    results = task.results(ROWS, [], perfect)
    assert next(iter(results.metrics)) == "bleu"
    assert results.metrics["exact_match"].value == results.metrics["rougeL"].value == 1
    np.testing.assert_allclose(results.metrics["chrf"].value, 100)
    np.testing.assert_allclose(results.metrics["perplexity"].value, np.exp(0.5))
    assert results.predictions is None
    assert results.records[1].keys() == {"source", "target", "predicted", "confidence"}
    np.testing.assert_allclose([record["confidence"] for record in results.records], 0.5)
    # The limit cut the second text, the third is wrong.
    results = task.results(ROWS, [], [perfect[0], output("abcd", False, 0.5), output("abcdef", False, 0.25)])
    assert [record["predicted"] for record in results.records] == ["fe", "abcd", "abcdef"]
    np.testing.assert_allclose(results.metrics["exact_match"].value, 2 / 3)
    np.testing.assert_allclose(results.records[2]["confidence"], 0.25)


@pytest.mark.slow
def test_reversing_is_learned():
    config = dataclasses.replace(CONFIG, beams=2, label_smoothing=0.0)
    task = SequenceToSequence(tiny_model("encoder_decoder", initializer_range=0.2), config, TOKENIZER)
    random = np.random.default_rng(0)
    texts = ["".join(random.permutation(list("abcde"))[: random.integers(1, 4)]) for _ in range(32)]
    rows = [{"source": text, "target": text[::-1], "place": ""} for text in texts]
    batch = jax.device_put(make_batch(task, task.encode(rows).examples, {"S": 4, "T": 4}))
    optimizer = optax.adam(1e-2)

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            gradients = jax.grad(lambda params: task.loss(params, batch, None)[0] / 32)(params)
            updates, state = optimizer.update(gradients, state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), length=100)[0][0]

    params = train(jax.jit(task.init)(jax.random.key(0)))
    outputs = unbatch(jax.jit(task.predict)(params, batch), len(rows))
    metrics = task.results(rows, [], outputs).metrics
    assert metrics["exact_match"].value > 0.9
    assert metrics["perplexity"].value < 1.2


def test_targets_whose_words_the_metrics_cannot_find_are_named():
    tokenizer = train_tokenizer(TokenizerConfig(kind="bytes"), ())
    config = dataclasses.replace(CONFIG, max_target_length=16)
    rows = [{"source": "a", "target": "你好吗", "place": "1"}]
    task = SequenceToSequence(tiny_model("decoder", max_length=64), config, tokenizer)
    (note,) = task.encode(rows).notes
    assert note.startswith("config.task.metric_tokenizer=13a finds no words")
    chinese = dataclasses.replace(task, config=dataclasses.replace(config, metric_tokenizer="zh"))
    assert chinese.encode(rows).notes == ()
    output = {"generated": np.array(tokenizer.encode("你好")), "lengths": 6, "log_probs": np.zeros(6)}
    results = chinese.results(rows, [], [output | {"nll": 1.0, "tokens": 2.0}])
    assert results.metrics["rouge1"].value == pytest.approx(2 * 2 / (2 + 3))
    assert "tok:zh" in results.signatures["bleu"]
