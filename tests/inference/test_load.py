"""From a run to a model in use, with a calibrator that was fitted to it."""

import dataclasses

import numpy as np
import pytest

from lm.calibration.calibrators import Fitted, fit
from lm.calibration.predictions import Predictions, check_disjoint
from lm.errors import UserError
from lm.inference.classifiers import Classifier
from lm.inference.language_models import TaskLanguageModel
from lm.inference.load import in_use
from lm.inference.task_model import TaskModel
from lm.runs.config import FinetuneConfig
from lm.runs.trained_run import TrainedRun
from lm.tasks.completion import Completion
from lm.tasks.sequence_classification import SequenceClassification


class Likened(SequenceClassification):
    """A task that inherits."""


class NewTask:
    """A task like none that there is."""


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        (SequenceClassification, Classifier),
        (Likened, Classifier),
        (Completion, TaskLanguageModel),
        (NewTask, TaskModel),
    ],
)
def test_the_task_of_a_run_says_how_its_model_is_used(task, kind):
    run = TrainedRun(FinetuneConfig(), None, (), object.__new__(task), {}, 3)
    assert type(in_use(run)) is kind


def fitted_to(checkpoint, model):
    logits = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    return dataclasses.replace(fit("temperature", logits, logits.argmax(1)), checkpoint=checkpoint, model=model)


def model_with(calibrator, step=3, scale=1.0):
    task = object.__new__(SequenceClassification)
    run = TrainedRun(FinetuneConfig(), None, ("a", "b"), task, {"kernel": scale * np.arange(6.0, dtype="f4")}, step)
    return in_use(run, calibrator)


def test_a_calibrator_is_for_the_checkpoint_that_it_was_fitted_to():
    digest = model_with(None).digest
    for calibrator in (fitted_to(3, digest), fitted_to(3, None), fitted_to(None, None)):
        assert model_with(calibrator).calibrator is calibrator
    with pytest.raises(UserError, match="fitted to checkpoint 3, and this is checkpoint 5: use --checkpoint=3"):
        model_with(fitted_to(3, None), step=5)
    with pytest.raises(UserError, match="fitted to checkpoint 3, and this is checkpoint 5: use --checkpoint=3"):
        model_with(fitted_to(3, digest), step=5, scale=1.5)
    # The same parameters are the same model: one that was exported and imported has no steps.
    assert model_with(fitted_to(3, digest), step=5).calibrator is not None
    with pytest.raises(UserError, match="fitted to another model than this run's checkpoint 3"):
        model_with(fitted_to(3, digest), scale=1.5)


def test_a_calibrator_and_predictions_keep_their_origin_in_files(tmp_path):
    fitted_to(3, "ab12").save(tmp_path / "it.json")
    read = Fitted.load(tmp_path / "it.json")
    assert (read.checkpoint, read.model) == (3, "ab12")
    predictions = Predictions(np.eye(4, dtype="f4"), np.arange(4), np.arange(4), checkpoint=3, model="ab12")
    predictions.save(tmp_path / "it.npz")
    read = Predictions.load(tmp_path / "it.npz")
    assert (read.checkpoint, read.model) == (3, "ab12")
    other = dataclasses.replace(predictions, ids_N=np.arange(4, 8), checkpoint=5, model="cd34")
    with pytest.raises(UserError, match="of checkpoint 3, the test predictions of checkpoint 5"):
        check_disjoint(predictions, other)
