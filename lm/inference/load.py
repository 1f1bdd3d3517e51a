"""From a work directory, or a published model, to a model in use: the one place that checks which kind it is."""

import dataclasses
import os
from pathlib import Path

from jax.sharding import Mesh

from lm.calibration.calibrators import Fitted
from lm.errors import UserError
from lm.inference.classifiers import Classifier, QuestionAnswerer, Tagger
from lm.inference.language_models import LanguageModel, TaskLanguageModel
from lm.inference.masked_language_model import MaskedLanguageModel
from lm.inference.model_in_use import Encoder, ModelInUse
from lm.inference.prompted_classifier import PromptedClassifier
from lm.inference.task_model import TaskModel
from lm.modules.config import ModelConfig
from lm.pretrained.hub import resolve
from lm.pretrained.load import is_published
from lm.runs.config import PretrainConfig
from lm.runs.data_record import is_own
from lm.runs.prompted_run import PromptedRun, PromptedRunConfig, load_prompted
from lm.runs.published_runs import load_published
from lm.runs.trained_run import TrainedRun, load_run
from lm.runs.work_directory import WorkDirectory
from lm.tasks.sequence_classification import SequenceClassification
from lm.tasks.sequence_to_sequence import SequenceToSequence
from lm.tasks.span_extraction import SpanExtraction
from lm.tasks.token_classification import TokenClassification

# How models trained on rows are used; the first matching class of the task decides. Other tasks can only be evaluated.
_OF_TASKS: tuple[tuple[type, type[ModelInUse]], ...] = (
    (SequenceClassification, Classifier),
    (TokenClassification, Tagger),
    (SpanExtraction, QuestionAnswerer),
    (SequenceToSequence, TaskLanguageModel),
)
# And pretrained models, by architecture.
_OF_TEXT: dict[str, type[ModelInUse]] = {
    "decoder": LanguageModel,
    "encoder_decoder": LanguageModel,
    "encoder": MaskedLanguageModel,
}


def load(
    directory: str | os.PathLike,
    checkpoint: str = "best",
    calibrator: str | os.PathLike | Fitted | None = None,
    mesh: Mesh | None = None,
    dtype: str = "float32",
    model: str | os.PathLike = "",
    scan_layers: bool = False,
) -> ModelInUse:
    """A trained model, ready for use.

    Args:
      directory: work directory of a run, or a published model: "hf:DIRECTORY", "hf:owner/name" or "gguf:FILE".
      checkpoint: the "best" by its validation metric, the "last", or a step.
      calibrator: of the model's probabilities: a name from the run's calibration/, such as "temperature", the path of a
        file, or a fitted calibrator.
      mesh: of devices, with axes `data`, `fsdp` and `tensor`, that share the parameters; None: one device holds them.
      dtype: in which a published model is kept and computed: "float32", "bfloat16" or "float16". A run has its own.
      model: for a prompted run, where the model is that it prompts; empty: where its prompt.json says.
      scan_layers: of a published model: keep the parameters of all layers stacked, so that each shape compiles several
        times faster. A run has its own way.

    Returns:
      Depending on the run: `LanguageModel` (decoders and encoder-decoders, pretrained or trained on a task),
      `MaskedLanguageModel`, `Classifier`, `Tagger`, `QuestionAnswerer` or `PromptedClassifier`; for other tasks a
      `TaskModel`; for an encoder that only encodes texts an `Encoder`.

    Raises:
      UserError: if the model, the checkpoint or the calibrator cannot be read, or the calibrator is for another model.
    """
    source = os.fspath(directory)
    if is_published(source):
        if model:
            raise UserError(f"{source} is not a prompted run: leave model={os.fspath(model)} out")
        if checkpoint != "best":
            raise UserError(f"{source} is a published model, which has no checkpoints: leave the checkpoint out")
        run = load_published(source, ModelConfig(dtype=dtype, parameter_dtype=dtype, scan_layers=scan_layers), mesh)
        fitted = None if calibrator is None else find_calibrator(WorkDirectory(resolve(source)), calibrator)
        return in_use(run, fitted, mesh)
    if dtype != "float32":
        raise UserError(f"{source} is a run, whose config says in which dtype it is kept: leave dtype={dtype} out")
    work_directory = WorkDirectory(Path(directory))
    if work_directory.prompt.exists():
        if checkpoint != "best":
            raise UserError(f"{source} is a prompted run, whose prompt.json names the checkpoint: leave it out")
        return _load_prompted(work_directory, calibrator, mesh, os.fspath(model))
    if model:
        raise UserError(f"{source} is not a prompted run: leave model={os.fspath(model)} out")
    fitted = find_calibrator(work_directory, calibrator)
    return in_use(load_run(work_directory, checkpoint, mesh=mesh), fitted, mesh)


def _load_prompted(
    directory: WorkDirectory, calibrator: str | os.PathLike | Fitted | None, mesh: Mesh | None, model: str
) -> PromptedClassifier:
    """The model of a prompted run, prompted as it says."""
    run = load_prompted(directory)
    if not model and not is_own(directory, run.config):
        raise UserError(
            f"{directory.path} was not made by you on this machine, and its prompt.json makes this command read "
            f"{run.config.model}: if you want that, name the model yourself, with lm.load(..., model=...) or --model"
        )
    prompted = prompt_model(run, load_scorer(run.config, model, mesh))
    if prompted.scorer.digest != run.model:
        raise UserError(
            f"{directory.path} prompts another model than {model or run.config.model} holds now: put the former one "
            "back, or run experiments.prompt again"
        )
    return dataclasses.replace(prompted, calibrator=find_calibrator(directory, calibrator))


def load_scorer(config: PromptedRunConfig, model: str | os.PathLike = "", mesh: Mesh | None = None) -> ModelInUse:
    """The model that a run prompts. Its layers are stacked where it can choose: rows of many lengths are compiled.

    Args:
      config: of the run.
      model: where the model is; empty: where the config says.
      mesh: of devices.

    Raises:
      UserError: if it cannot be loaded.
    """
    return load(model or config.model, config.checkpoint, mesh=mesh, dtype=config.dtype, scan_layers=True)


def prompt_model(run: PromptedRun, model: ModelInUse) -> PromptedClassifier:
    """A language model, prompted as a run says.

    Raises:
      UserError: for a model of another kind.
    """
    if not isinstance(model, LanguageModel | MaskedLanguageModel):
        raise UserError(f"{run.config.model} is {model.kind}: only language models can be prompted")
    return PromptedClassifier(
        run=model.run, mesh=model.mesh, scorer=model, prompting=run.prompting, prompted_data=run.config.data
    )


def in_use(run: TrainedRun, calibrator: Fitted | None = None, mesh: Mesh | None = None) -> ModelInUse:
    """Like `load`, for a run that has already been read.

    Args:
      run: with task and parameters for the mesh.
      calibrator: of its probabilities.
      mesh: as for `load`.

    Raises:
      UserError: if the calibrator belongs to another model.
    """
    if isinstance(run.config, PretrainConfig):
        architecture = run.config.model.architecture
        only_encodes = architecture == "encoder" and run.config.objective.name == "none"
        kind = Encoder if only_encodes else _OF_TEXT[architecture]
    else:
        kind = next((kind for task, kind in _OF_TASKS if isinstance(run.task, task)), TaskModel)
    return kind(run, calibrator, mesh)


def find_calibrator(directory: WorkDirectory, calibrator: str | os.PathLike | Fitted | None) -> Fitted | None:
    """The calibrator by name in the run's calibration/, by path, or as given.

    Raises:
      UserError: if there is no such file, or it is not a calibrator.
    """
    if calibrator is None or isinstance(calibrator, Fitted):
        return calibrator
    path = Path(os.path.expanduser(calibrator))
    is_name = isinstance(calibrator, str) and path.name == calibrator and path.suffix != ".json"
    return Fitted.load(directory.calibration / f"{calibrator}.json" if is_name else path)
