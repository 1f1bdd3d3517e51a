"""A prompted model on disk: which model, how it is prompted, and the examples that were drawn.

prompt.json  data.json  scores/  predictions/  calibration/
"""

import dataclasses
from typing import Any

from lm.configuration import check_seed, differences, from_config_dict
from lm.data.config import ExamplesConfig
from lm.errors import UserError
from lm.files import is_unchanged, json_value, read_json_object, with_digest, write_json
from lm.prompting.config import PromptConfig
from lm.prompting.prompts import OPTIONS, Prompting, columns_of
from lm.runs.work_directory import WorkDirectory
from lm.tasks.supervised import Row


@dataclasses.dataclass(frozen=True)
class PromptedRunConfig:
    """A model, prompted to classify rows.

    Attributes:
      seed: for drawing shots, and random words.
      model: work directory of a run, or a published model (hf:DIRECTORY, hf:owner/name or gguf:FILE).
      checkpoint: of a run: "best", "last" or a step.
      dtype: of a published model: "float32", "bfloat16" or "float16".
      data: the rows. Shots are drawn from those for training; calibrators are fitted to those for validation.
      prompt: how rows become prompts.
      own_options: whether rows have a column `options` with the answers to choose from.
      classes: names of the classes in their order. Empty: those of the training rows, sorted.
      validation_rows: how many validation rows to score, drawn with `data.split_seed`; 0: all.
      test_rows: how many test rows; 0: all.
      content_free: texts without content, for contextual calibration (Zhao et al. 2021).
      domain_texts: number of texts of random words of the training rows, for domain-context calibration (Fei et al.
        2023); 0: none.
    """

    seed: int = 0
    model: str = ""
    checkpoint: str = "best"
    dtype: str = "float32"
    data: ExamplesConfig = ExamplesConfig()
    prompt: PromptConfig = PromptConfig()
    own_options: bool = False
    classes: tuple[str, ...] = ()
    validation_rows: int = 256
    test_rows: int = 0
    content_free: tuple[str, ...] = ("N/A", "[MASK]", "")
    domain_texts: int = 16

    def __post_init__(self):
        for name in ("validation_rows", "test_rows", "domain_texts"):
            if getattr(self, name) < 0:
                raise UserError(f"config.{name} must not be negative, got {getattr(self, name)}")
        check_seed("config.seed", self.seed)
        if isinstance(self.content_free, str):
            raise UserError(f"config.content_free must be a tuple, got {self.content_free!r}: add a trailing comma")
        if self.own_options and self.classes:
            raise UserError("config.classes is for fixed classes, but config.own_options is set: leave one out")


@dataclasses.dataclass(frozen=True)
class PromptedRun:
    """What prompt.json holds.

    Attributes:
      config: what was asked for.
      prompting: classes and shots included.
      model: digest of the model's parameters.
    """

    config: PromptedRunConfig
    prompting: Prompting
    model: str

    def check(self, directory: WorkDirectory) -> None:
        """Checks that this run can use the directory, which may hold one that was stopped.

        Raises:
          UserError: if it holds another run.
        """
        if directory.config.exists():
            raise UserError(f"{directory.path} holds a trained run: use another --workdir")
        if not directory.prompt.exists():
            return
        changed = differences(_record(load_prompted(directory)), _record(self))
        if changed:
            listed = "; ".join(f"{name} was {old!r:.60}, is {new!r:.60}" for name, (old, new) in changed.items())
            raise UserError(
                f"{directory.path} holds another prompted run ({listed}): delete it, or use another --workdir"
            )

    def save(self, directory: WorkDirectory) -> None:
        """Writes prompt.json.

        Raises:
          UserError: if it cannot be written.
        """
        try:
            directory.path.mkdir(parents=True, exist_ok=True)
            write_json(directory.prompt, with_digest(_record(self)))
        except OSError as error:
            raise UserError(f"--workdir={directory.path} cannot be written: {error.strerror}") from error


def load_prompted(directory: WorkDirectory) -> PromptedRun:
    """Reads prompt.json.

    Raises:
      UserError: if it is missing or damaged.
    """
    record = read_json_object(directory.prompt)
    if not is_unchanged(record):
        raise UserError(f"{directory.prompt} was changed since experiments.prompt wrote it: prompt the model again")
    try:
        config = from_config_dict(PromptedRunConfig, record["config"], str(directory.prompt))
        shots = tuple(_shot(shot, config) for shot in record["shots"])
        prompting = Prompting(config.prompt, tuple(map(str, record["classes"])), config.own_options, shots)
        return PromptedRun(config, prompting, str(record["model"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{directory.prompt} is damaged: prompt the model again") from error


def _shot(values: dict[str, Any], config: PromptedRunConfig) -> Row:
    """A row with all columns of the template, texts but for the options."""
    for name in columns_of(config.prompt, config.own_options).needed:
        kind = list if name == OPTIONS else str
        if not isinstance(values[name], kind):
            raise TypeError(name)
    return values


def _record(run: PromptedRun) -> dict[str, Any]:
    return json_value(
        {
            "config": dataclasses.asdict(run.config),
            "classes": list(run.prompting.classes),
            "shots": [dict(shot) for shot in run.prompting.shots],
            "model": run.model,
        }
    )
