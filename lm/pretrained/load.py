"""A published model from its files: the shape, the tokenizer, and where the weights are."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lm.data.gguf_tokenizers import tokenizer_of_gguf
from lm.data.published_tokenizers import read_tokenizer
from lm.data.tokenizers import Tokenizer
from lm.errors import UserError, naming
from lm.files import read_json_object
from lm.modules.config import ModelConfig
from lm.pretrained.families import family_of_published
from lm.pretrained.family import Family
from lm.pretrained.gguf_files import read_gguf
from lm.pretrained.hub import KINDS, resolve
from lm.pretrained.parameters import dropped_weights, parts_present, read_parameters, shape_as_stored
from lm.pretrained.published_config import PublishedConfig
from lm.pretrained.sentence_encoders import SentenceEncoding, read_sentence_encoding
from lm.pretrained.tensors import Tensors, open_tensors
from lm.types import Params

# Of config.json: what only this library knows of a model.
OWN_KEY = "calibrated_lm"


@dataclasses.dataclass(frozen=True)
class PublishedModel:
    """A published model whose weights are still in their files.

    Attributes:
      path: its directory or GGUF file.
      family: it belongs to.
      model_type: of its config.json.
      config: its shape.
      parts: which of `Family.parts` it has.
      tensors: the weights.
      tokenizer: its own.
      sentences: how it makes vectors of sentences, if it says so.
      task: that it has a head for, a key of `Family.heads`; "": none.
      classes: of that head.
      settings: of the task, for a model that was exported here.
    """

    path: Path
    family: Family
    model_type: str
    config: ModelConfig
    parts: tuple[str, ...]
    tensors: Tensors
    tokenizer: Tokenizer
    sentences: SentenceEncoding | None
    task: str
    classes: tuple[str, ...]
    settings: Mapping[str, Any]

    @property
    def dropped(self) -> tuple[str, ...]:
        """Weights of a head that has no counterpart here: the model is without it."""
        return dropped_weights(self.family, self.tensors)

    def read(self, like: Params, parts: tuple[str, ...], advance: Callable[[], object]) -> Params:
        """The parameters, with some of the parts; see `lm.pretrained.parameters.read_parameters`."""
        return read_parameters(self.family, self.config, parts, self.tensors, like, self.task, advance)


def is_published(source: str) -> bool:
    """Whether a source names a published model: "hf:..." or "gguf:...", not the directory of a run."""
    return source.startswith(KINDS)


def open_published(source: str) -> PublishedModel:
    """Reads everything but the weights.

    Args:
      source: "hf:DIRECTORY", "hf:owner/name" or "gguf:FILE".

    Raises:
      UserError: if a file is missing or damaged, or the model is of no known family.
    """
    path = resolve(source)
    tensors: Tensors
    # The family comes first: most models that cannot be read are of another one.
    if source.startswith("gguf:"):
        file = read_gguf(path)
        published = PublishedConfig(file.config, str(path))
        family = family_of_published(published)
        tensors, tokenizer, sentences = file.tensors, tokenizer_of_gguf(file.tokenizer_metadata, str(path)), None
    else:
        published = _read_config(path)
        family = family_of_published(published)
        tensors, tokenizer, sentences = open_tensors(path), read_tokenizer(path), read_sentence_encoding(path)
    with naming(published.place):
        shape = family.to_ours(published)
    config = shape_as_stored(family, shape, tensors)
    if tokenizer.vocab_size > config.size_of_vocabulary:
        raise UserError(
            f"{path}: the tokenizer has {tokenizer.vocab_size:,} tokens, and the model's embedding only "
            f"{config.size_of_vocabulary:,}: they are of different models"
        )
    task = _task(family, published)
    return PublishedModel(
        path=path,
        family=family,
        model_type=published.values["model_type"],
        config=config,
        parts=() if task else parts_present(family, config, tensors),
        tensors=tensors,
        tokenizer=tokenizer,
        sentences=sentences,
        task=task,
        classes=_classes(published) if task and family.heads[task].has_classes else (),
        settings=published.group(OWN_KEY).group("task").values if task else {},
    )


def _read_config(path: Path) -> PublishedConfig:
    """The config.json of a directory.

    Raises:
      UserError: if it is missing, damaged, or that of a run.
    """
    place = path / "config.json"
    if not place.exists():
        raise UserError(f"{path} has no config.json: give the directory of a Hugging Face model, or gguf:FILE")
    values = read_json_object(place)
    if "model_type" not in values and isinstance(values.get("model"), dict):
        raise UserError(f"{path} is the directory of a run, not a published model: leave hf: out")
    return PublishedConfig(values, str(place))


def _task(family: Family, published: PublishedConfig) -> str:
    """The task of the head that the model's class has; "" for a class without one."""
    classes = published.values.get("architectures") or [""]
    if not isinstance(classes, list):
        raise UserError(f"{published.place}: architectures must be a list of class names, got {classes!r:.60}")
    # XLM-R has classes of its own, with RoBERTa's weights.
    name = str(classes[0]).replace("XLMRoberta", "Roberta").replace("Camembert", "Roberta")
    return next((task for task, head in family.heads.items() if head.model == name), "")


def _classes(published: PublishedConfig) -> tuple[str, ...]:
    """Names of the classes, by their numbers.

    Raises:
      UserError: if they are damaged, or the outputs are not the probabilities of classes that exclude each other.
    """
    # Scores of one or of several independent labels; what is not given are classes.
    published.expect("problem_type", "single_label_classification")
    labels = published.group("id2label").values
    if not labels:  # transformers leaves out names that are its own
        labels = {str(number): f"LABEL_{number}" for number in range(published.integer("num_labels", 2))}
    names = [labels.get(str(number)) for number in range(len(labels))]
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise UserError(f"{published.place}: id2label must give classes 0, 1, ... different names")
    if len(names) < 2:
        raise UserError(
            f"{published.place}: a model with {len(names) or 'no'} label scores texts, which is not supported, only "
            "models with two classes or more"
        )
    return tuple(str(name) for name in names)
