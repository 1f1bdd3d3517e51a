"""A published model as a run: what `experiments.import_model` writes, and `init_from=hf:...` and `lm.load` read."""

import dataclasses

import jax
from jax.sharding import Mesh

from lm.configuration import from_config_dict
from lm.console import QUIET, Console
from lm.data.files import note
from lm.models.parameter_paths import by_path, shortened_list
from lm.models.sharding import placed_shapes
from lm.modules.config import ModelConfig
from lm.objectives.objective import ObjectiveConfig, PretrainingTask
from lm.objectives.registry import make_task
from lm.pretrained.load import OWN_KEY, PublishedModel, open_published
from lm.pretrained.sentence_encoders import SentenceEncoding
from lm.runs.config import FinetuneConfig, PretrainConfig, RunConfig
from lm.runs.trained_run import TrainedRun
from lm.tasks.registry import make_supervised_task
from lm.tasks.supervised import SupervisedTask, TaskConfig

# What the objectives of encoders need of the tokenizer.
_MARKS = ("[CLS]", "[SEP]", "[MASK]")


def published_config(source: str, published: PublishedModel, how: ModelConfig = ModelConfig()) -> RunConfig:
    """The config of a run that holds a published model.

    Args:
      source: as for `open_published`.
      published: opened from it.
      how: the model is computed, and whether the parameters of all layers are stacked.

    Raises:
      UserError: if `how` asks for sequences that are too long for the model, or the task's settings are wrong.
    """
    model = published.config.executed_as(how)
    length = model.sequence_length or (published.sentences.sequence_length if published.sentences else None)
    model = dataclasses.replace(model, scan_layers=how.scan_layers, sequence_length=length)
    if not published.task:
        return PretrainConfig(
            model=model, objective=_objective(published), imported_from=source, imported_type=published.model_type
        )
    place = f"{published.path / 'config.json'}, {OWN_KEY}.task"
    task = from_config_dict(TaskConfig, {**published.settings, "name": published.task}, place)
    return FinetuneConfig(model=model, task=task, imported_from=source, imported_type=published.model_type)


def published_run(
    published: PublishedModel, config: RunConfig, mesh: Mesh | None = None, console: Console = QUIET
) -> TrainedRun:
    """Reads the weights of a published model.

    Args:
      published: opened from its files.
      config: from `published_config`.
      mesh: of the devices that share the parameters; None: the first device holds them.
      console: for progress.

    Raises:
      UserError: if they cannot be read, or are of another model than config.json says.
    """
    task: PretrainingTask | SupervisedTask
    if isinstance(config, FinetuneConfig):
        task = make_supervised_task(config.task, config.model, published.tokenizer, published.classes, mesh=mesh)
    else:
        task = make_task(config.objective, config.model, published.tokenizer, mesh)
    like = placed_shapes(jax.eval_shape(task.init, jax.random.key(0)), mesh)
    wanted = {path.removeprefix("body/").split("/")[0] for path in by_path(like)}
    parts = tuple(part for part in published.parts if part in wanted)
    if published.dropped:
        heads = shortened_list(list(published.dropped))
        note(f"{published.path}: {heads} are of a head that has no counterpart here: the model is without it")
    with console.progress("reading", len(jax.tree.leaves(like))) as advance:
        params = published.read(like, parts, advance)
    return TrainedRun(config, published.tokenizer, published.classes, task, params, step=0)


def load_published(source: str, how: ModelConfig = ModelConfig(), mesh: Mesh | None = None) -> TrainedRun:
    """A published model as a run.

    Args:
      source: "hf:DIRECTORY", "hf:owner/name" or "gguf:FILE".
      how: as for `published_config`.
      mesh: as for `published_run`.

    Raises:
      UserError: if it cannot be read.
    """
    published = open_published(source)
    return published_run(published, published_config(source, published, how), mesh)


def _objective(published: PublishedModel) -> ObjectiveConfig:
    """The objective whose parts the model has; none for an encoder that is for vectors of sentences."""
    if published.config.architecture == "decoder":
        return ObjectiveConfig()
    sentences, pooler = published.sentences, "pooler" in published.parts
    if sentences is not None:
        return ObjectiveConfig(name="none", pooler=pooler, pooling=sentences.pooling, normalize=sentences.normalize)
    has_marks = all(published.tokenizer.special_id(name) is not None for name in _MARKS)
    if "prediction_head" in published.parts and has_marks:
        is_whole = pooler and "next_sentence_head" in published.parts
        return ObjectiveConfig(name="masked_next_sentence" if is_whole else "masked")
    return ObjectiveConfig(name="none", pooler=pooler)


def sentence_encoding(config: RunConfig) -> SentenceEncoding | None:
    """How the model of a run makes vectors of sentences, where it differs from what any encoder does."""
    if not isinstance(config, PretrainConfig) or config.objective.name != "none":
        return None
    objective = config.objective
    found = SentenceEncoding(objective.pooling, objective.normalize, config.model.sequence_length)
    return None if found == SentenceEncoding("mean", False, None) else found
