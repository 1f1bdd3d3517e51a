"""Tagging: which token answers for a word, what counts, and what comes out of perfect and of cut sentences."""

import functools

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from lm.data.config import TokenizerConfig
from lm.data.tokenizers import Tokenizer, train_tokenizer
from lm.errors import UserError
from lm.models.heads import TokenClassifier
from lm.modules.config import ModelConfig
from lm.tasks.classification_loss import ClassificationLoss
from lm.tasks.text_encoding import special_tokens
from lm.tasks.token_classification import TokenClassification, tagging_results

ROWS = [
    {"words": ["Ada", "saw", "Mount", "Rainier"], "tags": ["B-per", "O", "B-loc", "I-loc"], "place": "train:1"},
    {"words": ["Rainier", "is", "high"], "tags": ["B-loc", "O", "O"], "place": "train:6"},
    {"words": ["Unfathomable", "!"], "tags": ["O", "O"], "place": "train:10"},
]
TAGS = ("B-loc", "B-per", "I-loc", "O")


@functools.cache
def make_tokenizer(kind="wordpiece") -> Tokenizer:
    if kind == "wordpiece":  # a vocabulary of our own, since training one is not reproducible
        letters = sorted(set("".join(word for row in ROWS for word in row["words"])))
        pieces = ["[UNK]", *letters, *(f"##{letter}" for letter in letters), "Rainier", "saw", "is", "Un", "##able"]
        backend = Backend(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
        tokenizer = Tokenizer(backend)
    else:
        texts = ["Ada saw Mount", "Rainier is high", "Un af ta at ah ao am ab al ae !"]
        tokenizer = train_tokenizer(TokenizerConfig(kind=kind, vocab_size=266), lambda split: texts)
    return tokenizer.with_special_tokens(special_tokens("encoder"))


def make_task(kind="wordpiece", max_length=32, loss=ClassificationLoss(), **choices) -> TokenClassification:
    tokenizer = make_tokenizer(kind)
    shape = {"layers": 1, "width": 16, "heads": 2, "max_length": max_length, "dropout": 0.1, "attention": "xla"}
    model = ModelConfig(architecture="encoder", vocab_size=tokenizer.vocab_size, **shape)
    return TokenClassification(TokenClassifier(model, len(TAGS)), tokenizer, TAGS, loss, **choices)


def make_batch(examples, length, fill=0, rows=None):
    """Examples padded to a length, with `fill` in place of the padding's tokens, types and targets."""
    batch = {}
    for name in TokenClassification.axes:
        value = 0 if name in ("segments", "weights") else fill
        padded = [np.pad(each[name], (0, length - each[name].size), constant_values=value) for each in examples]
        batch[name] = np.stack(padded)
    row_weights = np.ones(len(examples)) if rows is None else rows
    return batch | {"row_weights": np.asarray(row_weights, np.float32)}


def perfect_outputs(task, examples):
    return [{"logits": 20 * np.eye(len(task.tags), dtype=np.float32)[each["targets"]]} for each in examples]


@pytest.fixture(scope="module")
def params():
    shapes = jax.eval_shape(make_task().init, jax.random.key(0))
    random = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: random.normal(size=leaf.shape, scale=0.3).astype(np.float32), shapes)


# One task for all losses, so that one is compiled.
OBJECTIVE = ClassificationLoss(label_smoothing=0.1, weights_C=(1.0, 2.0, 3.0, 1.0))


@functools.cache
def compiled_loss():
    return jax.jit(jax.value_and_grad(make_task(loss=OBJECTIVE).loss, has_aux=True))


@functools.cache
def compiled_predict():
    return jax.jit(make_task().predict)


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "bytes"])
def test_the_first_token_of_each_word_carries_its_tag(kind):
    task = make_task(kind)
    tokenizer = task.tokenizer
    for row, example in zip(ROWS, task.encode(ROWS).examples, strict=True):
        begins = np.flatnonzero(example["weights"])
        assert [task.tags[number] for number in example["targets"][begins]] == row["tags"]
        np.testing.assert_array_equal(example["weights"][begins], 1)
        # From one beginning to the next, and up to the last special token, the tokens spell one word.
        ends = [*begins[1:], example["tokens"].size - 1]
        spelled = [tokenizer.decode(example["tokens"][a:b]).strip() for a, b in zip(begins, ends, strict=True)]
        assert [word.replace(" ", "") for word in spelled] == row["words"]
        assert begins[0] == 1, "[CLS] has no tag"
        if row is ROWS[2]:
            assert np.diff(begins).max() > 1, "one word should have several tokens here"


def test_arrays_fit_the_contract():
    task = make_task()
    for example in task.encode(ROWS).examples:
        assert example.keys() == task.axes.keys()
        assert {name: array.dtype for name, array in example.items()} == {
            **dict.fromkeys(("tokens", "segments", "types", "targets"), np.int32),
            "weights": np.float32,
        }
        assert len({array.shape for array in example.values()}) == 1


def test_sums_equal_the_definition(params):
    task = make_task()
    batch = make_batch(task.encode(ROWS).examples, 24, rows=[1, 1, 0])
    (total, sums), _ = compiled_loss()(params, batch, None)
    logits_BTC = np.asarray(compiled_predict()(params, batch)["logits"])
    words = (batch["weights"] > 0) & (batch["row_weights"] > 0)[:, None]
    logits_WC, targets_W = logits_BTC[words], batch["targets"][words]
    log_probs_WC = jax.nn.log_softmax(logits_WC)
    assert sums.keys() == {"weight", "loss", "objective", "accuracy"}
    assert sums["weight"] == 7, "words, not tokens, and none of a row without weight"
    np.testing.assert_allclose(sums["loss"], -log_probs_WC[np.arange(7), targets_W].sum(), rtol=1e-5)
    expected = OBJECTIVE(logits_WC, np.eye(4, dtype=np.float32)[targets_W]).sum()
    np.testing.assert_allclose([total, sums["objective"]], expected, rtol=1e-5)
    np.testing.assert_allclose(sums["accuracy"], (logits_WC.argmax(axis=1) == targets_W).sum())


def test_padding_changes_nothing(params):
    task = make_task()
    examples = task.encode(ROWS).examples
    batch, other = make_batch(examples, 24), make_batch(examples, 24, fill=1)
    one, two = (np.asarray(compiled_predict()(params, each)["logits"]) for each in (batch, other))
    seen = batch["segments"] > 0
    np.testing.assert_allclose(one[seen], two[seen], atol=1e-6)
    (one, _), (two, _) = (compiled_loss()(params, each, None) for each in (batch, other))
    np.testing.assert_allclose(one[0], two[0], rtol=1e-6)


def test_training_learns_the_tags_of_words(params):
    task = make_task()
    examples = task.encode(ROWS).examples
    batch = make_batch(examples, 24)
    losses = []
    for _ in range(25):
        (_, sums), gradient = compiled_loss()(params, batch, None)
        losses.append(float(sums["loss"] / sums["weight"]))
        params = jax.tree.map(lambda leaf, slope: leaf - 0.02 * np.asarray(slope), params, gradient)
    assert losses[-1] < 0.2 * losses[0]
    outputs = [{"logits": each} for each in np.asarray(compiled_predict()(params, batch)["logits"])]
    assert task.results(ROWS, examples, outputs).metrics["f1"].value == 1


def test_perfect_outputs_give_perfect_results():
    task = make_task()
    examples = task.encode(ROWS).examples
    results = task.results(ROWS, examples, perfect_outputs(task, examples))
    assert next(iter(results.metrics)) == "f1"
    for name in ("f1", "precision", "recall", "token_accuracy", "f1/loc", "f1/per"):
        assert results.metrics[name].value == 1
    assert "cut_off" not in results.metrics
    for row, record in zip(ROWS, results.records, strict=True):
        assert (record["words"], record["tags"], record["predicted"]) == (row["words"], row["tags"], row["tags"])
        np.testing.assert_allclose(record["confidence"], 1, atol=1e-6)
    np.testing.assert_array_equal(results.confusion_CC, np.diag([2, 1, 1, 5]))
    predictions = results.predictions
    assert predictions.class_names == results.class_names == TAGS
    np.testing.assert_array_equal(predictions.labels_N, predictions.logits.argmax(axis=1))
    clusters = ["train:1"] * 4 + ["train:6"] * 3 + ["train:10"] * 2
    np.testing.assert_array_equal(predictions.clusters_N, clusters)
    assert list(predictions.ids_N[3:5]) == ["train:1 word 4", "train:6 word 1"]


def test_results_of_mistakes():
    task = make_task()
    examples = task.encode(ROWS).examples
    outputs = perfect_outputs(task, examples)
    # "Rainier" in the first sentence is taken for the end of nothing, with a probability of one half.
    position = np.flatnonzero(examples[0]["weights"])[3]
    outputs[0]["logits"][position] = np.log([0.2, 0.2, 0.1, 0.5])
    results = task.results(ROWS, examples, outputs)
    assert results.records[0]["predicted"] == ["B-per", "O", "B-loc", "O"]
    assert results.records[0]["confidence"][3] == pytest.approx(0.5)
    assert results.metrics["f1"].value == pytest.approx(2 / 3)
    assert results.confusion_CC[TAGS.index("I-loc"), TAGS.index("O")] == 1
    assert results.predictions.labels_N[3] == TAGS.index("I-loc")


def test_words_cut_off_are_outside_and_counted():
    task = make_task("bytes", max_length=14, truncate=True)
    encoded = task.encode(ROWS)  # to "Ada saw Moun", "Rainier is h" and "Unfathomable"
    assert encoded.cut == 3
    assert max(example["tokens"].size for example in encoded.examples) == 14
    results = task.results(ROWS, encoded.examples, perfect_outputs(task, encoded.examples))
    confidence = [record["confidence"] for record in results.records]
    assert [each.count(None) for each in confidence] == [1, 0, 1]
    assert results.records[0]["predicted"] == ["B-per", "O", "B-loc", "O"]
    assert results.metrics["cut_off"].value == pytest.approx(2 / 9)
    assert results.metrics["recall"].value == pytest.approx(2 / 3)
    assert results.confusion_CC.sum() == 9
    assert list(results.predictions.ids_N[2:4]) == ["train:1 word 3", "train:6 word 1"]
    np.testing.assert_array_equal(results.predictions.labels_N, results.predictions.logits.argmax(axis=1))


def test_sentences_too_long_are_an_error():
    with pytest.raises(UserError, match=r"train:1: the text has .* tokens .*config.task.truncate=True"):
        make_task("bytes", max_length=16).encode(ROWS)


def test_an_unknown_tag_is_named():
    row = {"words": ["Ada"], "tags": ["B-person"], "place": "dev.conll:7"}
    with pytest.raises(UserError) as caught:
        make_task().encode([row])
    assert str(caught.value).startswith(
        "dev.conll:7: the tag 'B-person' is not among the tags B-loc, B-per, I-loc, O: fix the row"
    )


def test_tags_that_mark_no_spans_are_classes_of_words():
    rows = [{"words": ["Ada", "saw"], "tags": ["noun", "verb"], "place": "1"}]
    results = tagging_results(rows, [np.array([[2.0, 0.0], [0.0, 2.0]])], ("noun", "verb"))
    assert next(iter(results.metrics)) == "accuracy"
    assert results.metrics["accuracy"].value == results.metrics["f1/verb"].value == 1


def test_the_scheme_is_named_and_mixtures_are_refused():
    rows = [{"words": ["Ada", "L"], "tags": ["B-per", "L-per"], "place": "1"}]
    tags = ("B-per", "L-per", "O", "U-per")
    results = tagging_results(rows, [np.array([[1.0, 0, 0, 0], [0, 1.0, 0, 0]])], tags)
    assert results.metrics["f1"].value == 1
    assert "scheme BILOU" in results.signatures["f1"]
    with pytest.raises(UserError, match="mix schemes"):
        TokenClassification(make_task().model, make_tokenizer(), (*tags, "E-per"), ClassificationLoss())


def test_truncation_needs_a_tag_for_what_is_cut_off():
    model = make_task().model
    with pytest.raises(UserError, match=r"config.task.truncate=True needs a tag 'O' for truncated words"):
        TokenClassification(model, make_tokenizer(), ("noun", "verb"), ClassificationLoss(), truncate=True)
