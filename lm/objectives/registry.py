"""The pretraining objectives by name. A new one needs a file with its task and an entry here."""

from collections.abc import Mapping

from jax.sharding import Mesh

from lm.configuration import idle_beside, refuse_idle
from lm.data.tokenizers import Tokenizer
from lm.errors import UserError
from lm.modules.config import ModelConfig
from lm.objectives.causal_lm import CausalLM
from lm.objectives.denoising import Denoising
from lm.objectives.masked_lm import MaskedLM
from lm.objectives.next_sentence import NextSentence, SentenceOrder
from lm.objectives.no_objective import NoObjective
from lm.objectives.objective import ObjectiveConfig, PretrainingTask, TextProperties
from lm.objectives.prefix_lm import PrefixLM
from lm.objectives.span_corruption import SpanCorruption

OBJECTIVES: dict[str, type[PretrainingTask]] = {
    "causal": CausalLM,
    "prefix": PrefixLM,
    "masked": MaskedLM,
    "masked_next_sentence": NextSentence,
    "masked_sentence_order": SentenceOrder,
    "span_corruption": SpanCorruption,
    "denoising": Denoising,
}
# "none" is what an imported model has that can only be used and fine-tuned.
_ALL: dict[str, type[PretrainingTask]] = {**OBJECTIVES, "none": NoObjective}


def check_objective(config: ObjectiveConfig) -> None:
    """Checks the name, and that no unused settings are set.

    Raises:
      UserError: otherwise.
    """
    _class_of(config)
    refuse_idle(config, "config.objective", idle_settings(config.name))


def idle_settings(name: str) -> Mapping[str, str]:
    """The settings of `ObjectiveConfig` without effect for an objective, each with the setting that disables it."""
    return idle_beside(name, {each: task.settings for each, task in _ALL.items()})


def special_tokens(config: ObjectiveConfig) -> tuple[str, ...]:
    """Names of the special tokens that an objective requires of the tokenizer, in addition to the end-of-text token."""
    return _class_of(config).special_tokens(config)


def make_task(
    config: ObjectiveConfig,
    model: ModelConfig,
    tokenizer: Tokenizer,
    mesh: Mesh | None = None,
    text: TextProperties = TextProperties(),
) -> PretrainingTask:
    """The task of a config, with its model.

    Args:
      config: which.
      model: its shape, including the vocabulary size.
      tokenizer: of the text.
      mesh: of devices, or None for one device.
      text: what is known about it.

    Raises:
      UserError: if the model's architecture or the tokenizer doesn't fit the objective.
    """
    task = _class_of(config)
    if task.architecture and model.architecture != task.architecture:
        raise UserError(
            f"config.objective.name={config.name} needs config.model.architecture={task.architecture}, got "
            f"{model.architecture}"
        )
    return task.from_config(config, model, tokenizer, mesh, text)


def _class_of(config: ObjectiveConfig) -> type[PretrainingTask]:
    if config.name not in _ALL:
        raise UserError(f"config.objective.name must be one of {', '.join(_ALL)}; got {config.name!r}")
    return _ALL[config.name]
