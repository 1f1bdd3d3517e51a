"""The pretraining objectives by name.

A new one is a file with its task, a name in `lm.objectives.objective.OBJECTIVES`, and an entry here.
"""

from jax.sharding import Mesh

from lm.data.tokenizers import Tokenizer
from lm.errors import UserError
from lm.evaluation.token_reliability import TokenBuckets
from lm.models.build import make_language_model
from lm.modules.config import ModelConfig
from lm.objectives import denoising, masked_lm, span_corruption
from lm.objectives.causal_lm import CausalLM
from lm.objectives.denoising import Damage, Denoising
from lm.objectives.masked_lm import MaskedLM, Masking
from lm.objectives.next_sentence import NextSentence
from lm.objectives.objective import ObjectiveConfig, PretrainingTask
from lm.objectives.prefix_lm import PrefixLM
from lm.objectives.span_corruption import SpanCorruption, SpanCutter

_TASKS: dict[str, type[PretrainingTask]] = {
    "causal": CausalLM,
    "prefix": PrefixLM,
    "masked": MaskedLM,
    "masked_next_sentence": NextSentence,
    "masked_sentence_order": NextSentence,
    "span_corruption": SpanCorruption,
    "denoising": Denoising,
}


def special_tokens(config: ObjectiveConfig) -> tuple[str, ...]:
    """Names of the special tokens that an objective needs the tokenizer to have, besides the end-of-text token."""
    task = _TASKS[config.name]
    if task in (MaskedLM, NextSentence):
        return masked_lm.SPECIAL_TOKENS
    if task is SpanCorruption:
        return tuple(span_corruption.sentinel_name(number) for number in range(config.sentinels))
    return (denoising.MASK,) if task is Denoising else ()


def make_task(
    config: ObjectiveConfig,
    model_config: ModelConfig,
    tokenizer: Tokenizer,
    mesh: Mesh | None = None,
    one_segment: bool = False,
    buckets: TokenBuckets = TokenBuckets(),
) -> PretrainingTask:
    """The task that a config asks for, around a model.

    Args:
      config: which.
      model_config: of the model, its vocabulary size known.
      tokenizer: of the text.
      mesh: of devices, or None for one device.
      one_segment: promises that every window lies within one document; of use to "causal" alone, whose rows need no
        mask then.
      buckets: of the vocabulary, by which reliability is told apart.

    Raises:
      UserError: if the model's architecture or the tokenizer doesn't fit the objective.
    """
    task = _TASKS[config.name]
    if model_config.architecture != task.architecture:
        raise UserError(
            f"config.objective.name={config.name} needs config.model.architecture={task.architecture}, got "
            f"{model_config.architecture}"
        )
    model = make_language_model(model_config, mesh)
    if task is CausalLM:
        return CausalLM(model, config, one_segment, buckets)
    if task is PrefixLM:
        return PrefixLM(model, config, buckets)
    if task is SpanCorruption:
        return SpanCorruption(model, config, buckets, SpanCutter.of(config, tokenizer, model_config.max_length))
    if task is Denoising:
        return Denoising(model, config, buckets, Damage.of(config, tokenizer))
    return task(model, config, Masking.of(config, tokenizer), buckets)
