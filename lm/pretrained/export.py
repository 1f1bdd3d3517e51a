"""One of our models as a directory that transformers reads."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from lm.data.frames import Frame
from lm.data.published_tokenizers import export_tokenizer
from lm.data.tokenizers import Tokenizer
from lm.errors import UserError
from lm.files import check_writable, write_json
from lm.models.parameter_paths import by_path
from lm.modules.config import ModelConfig
from lm.pretrained.families import FAMILIES, published_form
from lm.pretrained.family import Family
from lm.pretrained.load import OWN_KEY
from lm.pretrained.parameters import published_tensors
from lm.pretrained.sentence_encoders import SentenceEncoding, write_sentence_encoding
from lm.pretrained.tensors import write_safetensors
from lm.tasks.text_encoding import Layout
from lm.types import Params


@dataclasses.dataclass(frozen=True)
class Export:
    """What will be written, checked before anything is.

    Attributes:
      family: that the model belongs to in the world of published models.
      values: of config.json.
      config: the model's shape.
      parts: which of `Family.parts` it has.
      task: the task that its head is for, a key of `Family.heads`, or "".
      sentences: how it makes vectors of sentences, or None.
    """

    family: Family
    values: dict[str, Any]
    config: ModelConfig
    parts: tuple[str, ...]
    task: str = ""
    sentences: SentenceEncoding | None = None

    def write(self, directory: Path, params: Params, tokenizer: Tokenizer, dtype: str = "") -> None:
        """Writes config.json, generation_config.json, the weights and the tokenizer's files; config.json comes last.

        Args:
          directory: created if missing.
          params: of the model.
          tokenizer: its own.
          dtype: of the weights, one of `lm.modules.config.DTYPES`; "": as they are.

        Raises:
          UserError: if they cannot be written.
        """
        try:
            directory.mkdir(parents=True, exist_ok=True)
            export_tokenizer(tokenizer, directory, _frame(tokenizer, self.config.architecture))
            target = jnp.dtype(dtype) if dtype else None
            tensors = published_tensors(self.family, self.config, self.parts, params, target, self.task)
            write_safetensors(directory, tensors)
            ids = _special_ids(tokenizer, self.config.architecture)
            # What the family sets itself stays: RoBERTa counts positions from its padding token.
            ids = {name: id_ for name, id_ in ids.items() if self.values.get(name) is None}
            values = self.values | {"torch_dtype": dtype or self.config.parameter_dtype} | ids
            if self.config.architecture != "encoder" and not self.task:
                write_json(directory / "generation_config.json", _generation(tokenizer, self.config.architecture))
            if self.sentences is not None:
                write_sentence_encoding(directory, self.sentences, self.config.width)
            write_json(directory / "config.json", values)
        except OSError as error:
            raise UserError(f"{directory} cannot be written: {error.strerror or error}") from error


def plan_export(
    config: ModelConfig,
    params: Params,
    task: Mapping[str, Any] | None = None,
    classes: tuple[str, ...] = (),
    model_type: str = "",
    sentences: SentenceEncoding | None = None,
) -> Export:
    """How a model would be published.

    Args:
      config: its shape.
      params: its parameters, or their shapes.
      task: settings of the task that its head was trained for, `name` among them; None for a model without.
      classes: names of the head's classes.
      model_type: of the family to try first.
      sentences: how it makes vectors of sentences; None for a model that is for something else.

    Raises:
      UserError: if no family has such a model.
    """
    names = {path.removeprefix("body/").split("/")[0] for path in by_path(params)}
    present = names & {part for family in FAMILIES for part in family.parts}
    name = task["name"] if task else ""
    family, values = published_form(config, present, model_type, name)
    parts = tuple(part for part in family.parts if part in present)
    if classes:  # no labels at all would be no outputs, for transformers
        values = values | {
            "id2label": {str(number): label for number, label in enumerate(classes)},
            "label2id": {label: number for number, label in enumerate(classes)},
        }
    if task:
        values = values | {OWN_KEY: {"task": dict(task)}}
    return Export(family, values, config, parts, name, sentences)


def check_output(directory: Path) -> None:
    """Checks that a directory for an export is new or empty, and can be written.

    Raises:
      UserError: if not.
    """
    check_writable(directory, f"--output={directory}")
    if directory.is_dir() and any(directory.iterdir()):
        raise UserError(f"--output={directory} is not empty: name a new directory")


def _frame(tokenizer: Tokenizer, architecture: str) -> Frame | None:
    """What comes around texts for an encoder with one of our own tokenizers; published ones know it themselves."""
    if tokenizer.frame is not None or architecture != "encoder":
        return None
    layout = Layout.of(tokenizer, architecture)
    return Frame(layout.before, layout.between, layout.after)


def _special_ids(tokenizer: Tokenizer, architecture: str) -> dict[str, int]:
    found = {f"{role}_token_id": tokenizer.role_id(role) for role in ("bos", "eos", "pad")}
    if found["eos_token_id"] is None:
        found["eos_token_id"] = tokenizer.end_of_text
    if architecture == "encoder_decoder":
        found["decoder_start_token_id"] = tokenizer.start_of_output
    return {name: id_ for name, id_ in found.items() if id_ is not None}


def _generation(tokenizer: Tokenizer, architecture: str) -> dict[str, Any]:
    ends = list(tokenizer.ends)
    return _special_ids(tokenizer, architecture) | (
        {"eos_token_id": ends if len(ends) > 1 else ends[0]} if ends else {}
    )
