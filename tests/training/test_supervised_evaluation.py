"""Validation of tasks with examples: each example gets its own output, on any layout of devices.

Axes: N items, C classes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.data.example_batches import EvaluationExampleBatches
from lm.inference.examples import make_prediction_step, predict_examples
from lm.runs.config import PartitioningConfig
from lm.runs.state import TrainState
from lm.statistics.metrics import mean_metric
from lm.tasks.sequence_classification import classification_results
from lm.tasks.supervised import Results
from lm.training.partitioning import make_partitioner
from lm.training.supervised_evaluation import make_supervised_validation, validation_metrics

CLASSES = ("no", "perhaps", "yes")
RANDOM = np.random.default_rng(0)
LOGITS = 3 * RANDOM.normal(size=(41, 3)).astype(np.float32)
LABELS = np.where(RANDOM.random(41) < 0.6, LOGITS.argmax(axis=1), RANDOM.integers(3, size=41))
ROWS = [{"place": f"test:{i + 1}", "text": f"text {i}", "label": CLASSES[label]} for i, label in enumerate(LABELS)]
EXAMPLES = [
    {"tokens": np.full(length, i + 1, np.int32), "label": np.int32(LABELS[i])}
    for i, length in enumerate(RANDOM.integers(1, 20, size=41))
]


class Lookup:
    """A task whose model knows each example by its first token."""

    axes, padding = {"tokens": "T"}, {"tokens": 0}

    def predict(self, params, batch):
        number_B = jnp.maximum(batch["tokens"][:, 0] - 1, 0)
        return {"logits": params["table"][number_B], "tokens": batch["tokens"]}

    def results(self, rows, examples, outputs):
        return classification_results(rows, np.stack([output["logits"] for output in outputs]), CLASSES)


def state_of(partitioner):
    """Parameters that are wrong and averages that are right."""

    def init(key):
        wrong, right = ({"table": jnp.asarray(values)} for values in (LOGITS[::-1], LOGITS))
        return TrainState(jnp.zeros((), jnp.int32), wrong, (), right)

    return partitioner.compile_init(init)(jax.random.key(0))


LAYOUTS = {
    "data": PartitioningConfig(data=8),
    "mixed": PartitioningConfig(data=2, fsdp=2, tensor=2),
    "pmap": PartitioningConfig(strategy="pmap"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("batch_size", "buckets"), [(8, (4, 8, 16)), (16, (32,)), (64, (8,))])
def test_every_example_gets_its_own_output(layout, batch_size, buckets):
    partitioner = make_partitioner(LAYOUTS[layout])
    batches = EvaluationExampleBatches(EXAMPLES, Lookup.axes, Lookup.padding, batch_size, buckets)
    step = partitioner.compile_evaluation_step(make_prediction_step(Lookup(), partitioner.axis_name))
    params = state_of(partitioner).evaluation_params
    done: list[int] = []
    outputs = predict_examples(
        lambda batch: step(params, partitioner.place_batch(batch)), batches, len(EXAMPLES), lambda: done.append(1)
    )
    assert len(outputs) == len(EXAMPLES)
    assert len(done) == len(batches)
    for example, output, logits in zip(EXAMPLES, outputs, LOGITS, strict=True):
        np.testing.assert_array_equal(output["logits"], logits)
        length = len(example["tokens"])
        np.testing.assert_array_equal(output["tokens"][:length], example["tokens"])
        assert not output["tokens"][length:].any()


def test_validation_calls_the_task_with_the_averaged_parameters():
    partitioner = make_partitioner(LAYOUTS["data"])
    results = make_supervised_validation(Lookup(), ROWS, EXAMPLES, 16, (8, 32), partitioner)(state_of(partitioner))
    np.testing.assert_allclose(results.predictions.logits, LOGITS, rtol=1e-6)
    np.testing.assert_array_equal(results.predictions.labels_N, LABELS)
    assert results.metrics["accuracy"].value == pytest.approx(np.mean(LOGITS.argmax(axis=1) == LABELS))


def test_what_is_logged_leaves_single_classes_out():
    logged = validation_metrics(classification_results(ROWS, LOGITS, CLASSES))
    assert {"validation/accuracy", "validation/f1_macro", "validation/loss", "validation/ece"} <= logged.keys()
    assert all(name.count("/") == 1 and isinstance(value, float) for name, value in logged.items())
    texts = Results({"bleu": mean_metric([0.5, 0.7])}, [])
    assert validation_metrics(texts) == {"validation/bleu": pytest.approx(0.6)}
