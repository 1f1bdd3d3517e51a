"""Classification of texts and of pairs: whose loss counts, what mixing does, and what rows are refused.

Axes: B batch, T positions, C classes.
"""

import functools

import chex
import jax
import numpy as np
import pytest

from lm.data.config import ExamplesConfig, TokenizerConfig
from lm.data.rows import read_examples
from lm.data.tokenizers import train_tokenizer
from lm.errors import UserError
from lm.models.heads import SequenceClassifier
from lm.modules.config import ModelConfig
from lm.tasks.classification_loss import ClassificationLoss
from lm.tasks.registry import classes_of, columns_of, make_supervised_task, texts_of
from lm.tasks.sequence_classification import SequenceClassification, label_numbers
from lm.tasks.supervised import TaskConfig
from lm.tasks.text_encoding import special_tokens
from tests.tasks.tiny_pairs import make_batch, unbatch

CLASSES = ("bad", "fair", "good")
ROWS = [
    {"text": "a b c", "pair": "a", "label": "good", "place": "train:1"},
    {"text": "c", "pair": "b b", "label": "bad", "place": "train:2"},
    {"text": "b a", "pair": "c a b", "label": "fair", "place": "train:4"},
]
TOKENIZER = train_tokenizer(TokenizerConfig(kind="words"), lambda split: ["a b c"]).with_special_tokens(
    special_tokens("encoder")
)
LOSS = ClassificationLoss(label_smoothing=0.1, focal_gamma=1.0, weights_C=(1.0, 2.0, 0.5))


def make_task(loss=LOSS, **config) -> SequenceClassification:
    shape = {"vocab_size": TOKENIZER.vocab_size, "layers": 1, "width": 16, "heads": 2, "segment_types": 2}
    model = ModelConfig("encoder", max_length=16, attention="xla", **shape)
    return SequenceClassification(SequenceClassifier(model, 3), TaskConfig(**config), TOKENIZER, CLASSES, loss)


@functools.cache
def params():
    shapes = jax.eval_shape(make_task().init, jax.random.key(0))
    random = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: random.normal(size=leaf.shape, scale=0.4).astype(np.float32), shapes)


@functools.cache
def loss_and_gradient(mixup=0.0):
    return jax.jit(jax.value_and_grad(make_task(mixup=mixup).loss, has_aux=True))


@functools.cache
def compiled_predict():
    return jax.jit(make_task().predict)


EXAMPLES = make_task().encode(ROWS).examples
KEY = jax.random.key(5)


def loss_of(examples, weights=None, mixup=0.0, filler=0, key=KEY):
    batch = make_batch(make_task(), examples, {"T": 8}, filler)
    if weights is not None:
        batch["row_weights"] = np.asarray(weights, np.float32)
    (total, sums), gradients = loss_and_gradient(mixup)(params(), batch, key)
    return total, sums, gradients


def test_a_text_alone_and_a_pair_are_encoded():
    tokens, separate = TOKENIZER.encode("a b c"), TOKENIZER.special_id("[SEP]")
    example = EXAMPLES[0]
    assert example["tokens"].tolist() == [TOKENIZER.special_id("[CLS]"), *tokens, separate]
    assert example["label"] == 2
    pair = make_task(pair=True).encode(ROWS).examples[0]
    assert pair["tokens"].tolist() == [*example["tokens"], *TOKENIZER.encode("a"), separate]
    assert pair["types"].tolist() == [0] * 5 + [1] * 2


def test_sums_are_those_of_the_rows_by_their_weights():
    alone = [loss_of([example], filler=2) for example in EXAMPLES]
    together = loss_of(EXAMPLES)
    weighted = loss_of(EXAMPLES, weights=[1, 0, 2])
    for whole, weights in ((together, [1, 1, 1]), (weighted, [1, 0, 2])):
        expected = jax.tree.map(lambda *parts: np.dot(weights, np.stack(parts).reshape(3, -1)), *alone)  # noqa: B023
        chex.assert_trees_all_close(jax.tree.map(np.ravel, whole), expected, rtol=1e-4, atol=1e-6)
    assert together[1]["weight"] == 3


def test_the_objective_is_the_given_loss_and_the_loss_the_plain_likelihood():
    batch = make_batch(make_task(), EXAMPLES, {"T": 8})
    logits_BC = np.asarray(compiled_predict()(params(), batch)["logits"])
    total, sums, _ = loss_of(EXAMPLES)
    log_probs = jax.nn.log_softmax(logits_BC)
    labels = np.array([2, 0, 1])
    np.testing.assert_allclose(sums["loss"], -log_probs[np.arange(3), labels].sum(), rtol=1e-5)
    np.testing.assert_allclose(total, LOSS(logits_BC, np.eye(3, dtype=np.float32)[labels]).sum(), rtol=1e-5)
    np.testing.assert_allclose(total, sums["objective"])
    assert sums["accuracy"] == (logits_BC.argmax(axis=1) == labels).sum()


def test_mixing_with_what_only_fills_the_batch_changes_nothing():
    plain, mixed = (loss_of(EXAMPLES[:1], mixup=mixup, filler=2) for mixup in (0.0, 0.4))
    chex.assert_trees_all_close(mixed, plain, rtol=1e-5, atol=1e-7)


def test_mixing_with_an_equal_text_changes_nothing_and_with_another_does():
    twins = [EXAMPLES[0]] * 3
    chex.assert_trees_all_close(loss_of(twins, mixup=0.4), loss_of(twins), rtol=1e-4, atol=1e-6)
    plain, mixed, again = loss_of(EXAMPLES)[0], *(loss_of(EXAMPLES, mixup=0.4)[0] for _ in range(2))
    assert abs(plain - mixed) > 1e-3
    assert mixed == again
    assert loss_of(EXAMPLES, mixup=0.4, key=jax.random.key(6))[0] != mixed


def test_a_text_keeps_at_least_half_of_itself():
    share_B, partner_B = jax.jit(make_task(mixup=0.4)._mixture)(KEY, np.array([1, 1, 0, 1] * 100, np.float32))
    assert np.asarray(partner_B)[:3].tolist() == [399, 0, 1]
    share_B = np.asarray(share_B)
    assert (share_B >= 0.5).all()
    assert (share_B[3::4] == 1).all(), "their partners only fill the batch"
    assert share_B[1::4].std() > 0.1


def test_mixing_ends_with_training():
    batch = make_batch(make_task(), EXAMPLES, {"T": 8})
    plain, mixed = (str(jax.make_jaxpr(make_task(mixup=mixup).loss)(params(), batch, None)) for mixup in (0.0, 0.4))
    assert plain == mixed


def test_what_is_said_of_a_text_depends_on_no_padding():
    short, long = (
        unbatch(compiled_predict()(params(), make_batch(make_task(), EXAMPLES, {"T": length}, filler)), 3)
        for length, filler in ((6, 0), (16, 2))
    )
    for one, other in zip(short, long, strict=True):
        np.testing.assert_allclose(one["logits"], other["logits"], rtol=1e-4, atol=1e-5)
    task = make_task()
    assert task.results(ROWS, EXAMPLES, short).metrics.keys() == task.results(ROWS, EXAMPLES, long).metrics.keys()


def test_results_say_what_was_predicted_and_how_surely():
    outputs = [{"logits": row} for row in np.log(np.array([[0.1, 0.2, 0.7], [0.3, 0.6, 0.1], [0.2, 0.5, 0.3]]))]
    results = make_task().results(ROWS, EXAMPLES, outputs)
    assert [record["predicted"] for record in results.records] == ["good", "fair", "fair"]
    assert results.records[1]["confidence"] == pytest.approx(0.6)
    assert results.records[1]["probabilities"] == pytest.approx({"bad": 0.3, "fair": 0.6, "good": 0.1})
    assert results.metrics["accuracy"].value == pytest.approx(2 / 3)
    assert results.confusion_CC.tolist() == [[0, 1, 0], [0, 1, 0], [0, 0, 1]]
    assert results.predictions.ids_N.tolist() == ["train:1", "train:2", "train:4"]


def test_an_unknown_label_is_named_with_its_place():
    with pytest.raises(UserError) as caught:
        label_numbers([*ROWS, {"label": "great", "place": "test.jsonl:7"}], CLASSES)
    assert str(caught.value).startswith("test.jsonl:7: the label 'great' is not among the classes bad, fair, good")


def test_pairs_are_read_where_the_task_has_them(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "label": "good"}\n')
    data = ExamplesConfig(train=f"jsonl:{path}", validation=f"jsonl:{path}")
    assert "pair" not in read_examples(data, *columns_of(TaskConfig())).train[0]
    with pytest.raises(UserError, match=r"rows.jsonl:1.*pair"):
        read_examples(data, *columns_of(TaskConfig(pair=True)))
    with pytest.raises(UserError, match=r"train:9: the row has no pair"):
        make_task(pair=True).encode([*ROWS, {"text": "a", "label": "bad", "place": "train:9"}])


def test_the_registry_gives_classes_texts_and_class_weights():
    config = TaskConfig(class_weights="balanced")
    rows = [*ROWS, ROWS[0] | {"text": "d"}]
    assert classes_of(config, rows) == CLASSES
    assert classes_of(TaskConfig(classes=("yes", "no")), rows) == ("yes", "no")
    assert classes_of(TaskConfig(name="completion"), rows) == ()
    with pytest.raises(UserError, match="the training rows have only the class good"):
        classes_of(config, ROWS[:1])
    assert texts_of(config, rows[:2]) == ["a b c", "c"]
    assert texts_of(TaskConfig(pair=True), rows[:2]) == ["a b c", "a", "c", "b b"]
    model = ModelConfig("lstm", vocab_size=TOKENIZER.vocab_size, layers=1, width=4)
    task = make_supervised_task(config, model, TOKENIZER, CLASSES, rows)
    np.testing.assert_allclose(task.loss_of.weights_C, [4 / 3, 4 / 3, 2 / 3])
    assert not task.model.compares
    assert make_supervised_task(TaskConfig(pair=True), model, TOKENIZER, CLASSES, rows).model.compares
