"""A family of published models: how its config.json and its tensors correspond to ours."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lm.modules.config import ModelConfig
from lm.pretrained.published_config import PublishedConfig
from lm.pretrained.rules import Rule

Rules = Callable[[ModelConfig], Iterable[Rule]]


@dataclasses.dataclass(frozen=True)
class Head:
    """What a family's model for a task has on top of its body.

    Attributes:
      model: name of the transformers class.
      rules: of our `head`, and of the pooler where there is one between body and head.
      pools: whether there is one.
      has_classes: whether the head's outputs are classes with names.
    """

    model: str
    rules: Rules
    pools: bool = False
    has_classes: bool = True


@dataclasses.dataclass(frozen=True)
class Family:
    """One entry of the table of families, which reads, writes and tests.

    Attributes:
      name: for people, such as "Llama, TinyLlama, SmolLM2".
      model_types: values of `model_type` in config.json.
      prefix: before the names of a body's tensors if the model has a head, such as "model."; files may leave it out.
      to_ours: from config.json to our shape.
      to_theirs: from our shape to config.json without `architectures`. It may lose what the family cannot express, so
        what it writes is read again with `to_ours` and compared.
      rules: of the body, and of the output matrix of models that generate text.
      models: names of transformers classes, by the parts that they are for; the first whose parts are all there counts.
      parts: rules of what a model may lack, by the name of our parameters, such as "pooler".
      heads: of tasks, by `config.task.name`.
      unused: regular expressions of tensors that hold nothing to import: constants, and copies of tied weights.
      copies: tensors that a file may have besides those that they must equal, such as an output matrix that is the
        token embedding.
      copies_if_untied: whether transformers needs the copies in a model whose output matrix is not the token embedding,
        because it shares nothing then.
      old_names: ends of names in the rules, with those that old files have instead.
      dropped: regular expressions of weights of a head that has no counterpart here. The body is a model without it,
        and whoever reads it is told.
    """

    name: str
    model_types: tuple[str, ...]
    prefix: str
    to_ours: Callable[[PublishedConfig], ModelConfig]
    to_theirs: Callable[[ModelConfig], dict[str, Any]]
    rules: Rules
    models: Mapping[tuple[str, ...], str]
    parts: Mapping[str, Rules] = dataclasses.field(default_factory=dict)
    heads: Mapping[str, Head] = dataclasses.field(default_factory=dict)
    unused: tuple[str, ...] = ()
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    copies_if_untied: bool = False
    old_names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    dropped: tuple[str, ...] = ()

    def model(self, parts: Iterable[str] = (), task: str = "") -> str:
        """The transformers class of a model that has these parts or, for a task, its head."""
        if task:
            return self.heads[task].model
        return next(name for needed, name in self.models.items() if set(needed) <= set(parts))

    def all_rules(self, config: ModelConfig, parts: Iterable[str] = (), task: str = "") -> list[Rule]:
        """The rules of a model that has these parts or, for a task, its head."""
        if task:
            return [*self.rules(config), *self.heads[task].rules(config)]
        return [*self.rules(config), *(rule for part in parts for rule in self.parts[part](config))]
