"""From a run to a model in use."""

import pytest

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
