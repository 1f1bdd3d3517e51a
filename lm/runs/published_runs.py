"""A published model as a run: what `experiments.import_model` writes, and `init_from=hf:...` and `lm.load` read."""

import dataclasses

import jax
from jax.sharding import Mesh

from lm.console import QUIET, Console
from lm.models.sharding import placed_shapes
from lm.modules.config import ModelConfig
from lm.objectives.objective import ObjectiveConfig
from lm.objectives.registry import make_task
from lm.pretrained.load import PublishedModel, open_published
from lm.runs.config import PretrainConfig
from lm.runs.trained_run import TrainedRun

# What the objectives of encoders need of the tokenizer.
_MARKS = ("[CLS]", "[SEP]", "[MASK]")


def published_config(
    source: str, published: PublishedModel, execution: ModelConfig | None = None, scan_layers: bool = False
) -> PretrainConfig:
    """The config of a run that holds a published model.

    Args:
      source: as for `open_published`.
      published: opened from it.
      execution: how to compute; None: in float32.
      scan_layers: whether to stack the parameters of all layers.
    """
    model = published.config if execution is None else published.config.executed_as(execution)
    model = dataclasses.replace(model, scan_layers=scan_layers)
    return PretrainConfig(imported_from=source, model=model, objective=_objective(published))


def published_run(
    published: PublishedModel, config: PretrainConfig, mesh: Mesh | None = None, console: Console = QUIET
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
    task = make_task(config.objective, config.model, published.tokenizer, mesh)
    like = placed_shapes(jax.eval_shape(task.init, jax.random.key(0)), mesh)
    with console.progress("reading", len(jax.tree.leaves(like))) as advance:
        params = published.read(like, advance)
    return TrainedRun(config, published.tokenizer, (), task, params, step=0)


def load_published(source: str, execution: ModelConfig | None = None, mesh: Mesh | None = None) -> TrainedRun:
    """A published model as a run.

    Args:
      source: "hf:DIRECTORY", "hf:owner/name" or "gguf:FILE".
      execution: how to compute, `parameter_dtype` among it; None: in float32.
      mesh: as for `published_run`.

    Raises:
      UserError: if it cannot be read.
    """
    published = open_published(source)
    return published_run(published, published_config(source, published, execution), mesh)


def _objective(published: PublishedModel) -> ObjectiveConfig:
    """The objective whose parts the model has."""
    if published.config.architecture == "decoder":
        return ObjectiveConfig()
    has_marks = all(published.tokenizer.special_id(name) is not None for name in _MARKS)
    if "prediction_head" in published.parts and has_marks:
        whole = {"pooler", "next_sentence_head"} <= set(published.parts)
        return ObjectiveConfig(name="masked_next_sentence" if whole else "masked")
    sentences = published.sentences
    if sentences is None:
        return ObjectiveConfig(name="none", pooler="pooler" in published.parts)
    return ObjectiveConfig(name="none", pooler="pooler" in published.parts, pooling=sentences.pooling, normalize=sentences.normalize)
