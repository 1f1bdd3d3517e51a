"""The settings in which a model is prompted: data sets, forms of the answers, numbers of shots, draws and orders."""

import dataclasses

from lm.errors import UserError
from lm.prompting.config import PromptConfig
from lm.prompting.templates import LETTERS
from lm.runs.prompted_run import PromptedRunConfig

FORMS = ("text", "letters")


@dataclasses.dataclass(frozen=True)
class ProtocolConfig:
    """The experiment.

    Attributes:
      model: work directory of a run, or a published model (hf:DIRECTORY, hf:owner/name or gguf:FILE).
      checkpoint: of a run: "best", "last" or a step.
      dtype: of a published model: "float32", "bfloat16" or "float16".
      sst2: how this set is read and prompted, as in configs/prompt.py; its model, shots, seed and order are set here.
      ag_news: likewise.
      trec: likewise.
      sick: likewise.
      sst5: likewise.
      reviews: likewise.
      data_sets: the sets to use.
      shots: numbers of shots, each drawn with seed 0.
      main_shots: the number of shots with several draws and orders, and with letters.
      seeds: draws of the main number of shots, from 0.
      orders: orders of its first draw, from 0.
      resamples: of items, for intervals, floors and paired tests.
      draws: of labelled items, for each number of labels.
    """

    sst2: PromptedRunConfig
    ag_news: PromptedRunConfig
    trec: PromptedRunConfig
    sick: PromptedRunConfig
    sst5: PromptedRunConfig
    reviews: PromptedRunConfig
    model: str = ""
    checkpoint: str = "best"
    dtype: str = "float32"
    data_sets: tuple[str, ...] = ("sst2", "ag_news", "trec", "sick", "sst5", "reviews")
    shots: tuple[int, ...] = (0, 4, 8, 1)
    main_shots: int = 4
    seeds: int = 3
    orders: int = 2
    resamples: int = 1000
    draws: int = 5

    def __post_init__(self):
        known = [field.name for field in dataclasses.fields(self) if field.type is PromptedRunConfig]
        for name in self.data_sets:
            if name not in known:
                raise UserError(f"config.data_sets names {name!r}; known: {', '.join(known)}")
        if not self.data_sets:
            raise UserError(f"config.data_sets is empty: name some of {', '.join(known)}")
        for name in ("seeds", "orders", "resamples", "draws"):
            if getattr(self, name) < 1:
                raise UserError(f"config.{name} must be at least 1, got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class Setting:
    """One prompt for one data set.

    Attributes:
      data_set: its name.
      form: of the answers: their text, or letters that the instruction lists.
      shots: their number.
      seed: of their draw.
      order: of the shots, a seed.
    """

    data_set: str
    form: str = "text"
    shots: int = 0
    seed: int = 0
    order: int = 0

    @property
    def name(self) -> str:
        """For folders and tables."""
        return f"{self.data_set}_{self.form}_{self.shots}_shots_seed_{self.seed}_order_{self.order}"

    def config(self, config: ProtocolConfig) -> PromptedRunConfig:
        """The run that scores it."""
        base: PromptedRunConfig = getattr(config, self.data_set)
        prompt = lettered(base.prompt) if self.form == "letters" else base.prompt
        return dataclasses.replace(
            base,
            model=config.model,
            checkpoint=config.checkpoint,
            dtype=config.dtype,
            seed=self.seed,
            prompt=dataclasses.replace(prompt, shots=self.shots, order_seed=self.order),
        )


def settings_of(config: ProtocolConfig) -> list[Setting]:
    """All settings, the main ones first, so that a run that is stopped has something of every data set."""
    main = config.main_shots
    prompts = [{"shots": 0}, *({"shots": main, "seed": seed} for seed in range(config.seeds))]
    prompts += [{"shots": main, "form": "letters"}]
    prompts += [{"shots": main, "order": order} for order in range(config.orders)]
    prompts += [{"shots": shots} for shots in config.shots]
    return list(dict.fromkeys(Setting(name, **prompt) for prompt in prompts for name in config.data_sets))


def lettered(config: PromptConfig) -> PromptConfig:
    """The same prompt with letters as answers, which the instruction lists; so the list is read once for all rows.

    Raises:
      UserError: if the config does not list the answer of each class.
    """
    words = config.words()
    if not words:
        raise UserError("config.prompt.answers is empty: letters need the answer of each class")
    listed = "\n".join(f"{letter}. {texts[0].strip()}" for letter, texts in zip(LETTERS, words.values(), strict=False))
    return dataclasses.replace(
        config,
        instruction=f"{config.instruction}\n{listed}".lstrip("\n"),
        answers=tuple(f"{name}= {letter}" for letter, name in zip(LETTERS, words, strict=False)),
    )
