"""Prompts a language model to classify rows, and measures how well, and how sure of itself, it does.

python -m experiments.prompt --config=prompt:sst2 --config.model=gguf:FILE --workdir=runs/prompted_sst2
python -m experiments.prompt --config=prompt --config.model=runs/smollm2 --config.data.train=csv:train.csv \\
    --config.data.test=csv:test.csv --config.prompt.item=$'Mail: {text}\\nKind:' --workdir=runs/prompted_mails
python -m experiments.calibrate --config=calibrate_prompt --workdir=runs/prompted_sst2
python -m experiments.predict --workdir=runs/prompted_sst2 --calibrator=shift_temperature_bias --text="A quiet film."

Validation rows, to fit calibrators to, and test rows are scored: predictions/SPLIT.npz, SPLIT.jsonl and
SPLIT.metrics.json. A run that was stopped goes on where it was.
"""

import dataclasses
import functools
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from absl import flags

from experiments.evaluate import show
from lm.command_line import define_config_file, overridden, run
from lm.console import QUIET, Console
from lm.data.config import check_overridden_sources
from lm.data.rows import Row, Splits, read_examples
from lm.errors import UserError
from lm.files import check_writable
from lm.inference.load import load_scorer, prompt_model
from lm.inference.model_in_use import ModelInUse
from lm.inference.prompted_classifier import PromptedClassifier
from lm.prompting.answer_scores import AnswerScores
from lm.prompting.prompts import Prompting, columns_of, domain_texts
from lm.prompting.score_files import add_scores, continue_scores
from lm.prompting.shots import choose_shots
from lm.prompting.templates import LETTERS, Template
from lm.runs.data_record import check_data, write_data_record
from lm.runs.prompted_run import PromptedRun, PromptedRunConfig
from lm.runs.results import Evaluation, write_results
from lm.runs.work_directory import WorkDirectory
from lm.tasks.supervised import Columns
from lm.training.finetuning import row_fingerprints

_AT_ONCE = 128  # rows that are scored, and written, together
_LITTLE_MASS = 0.1

Score = Callable[[Sequence[Row]], list[AnswerScores]]


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command line."""
    define_config_file(values, PromptedRunConfig)
    flags.DEFINE_string("workdir", None, "Directory for the results.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Prompts and prints."""
    if not values.workdir:
        raise UserError("--workdir is missing: name a directory for the results")
    check_overridden_sources(values.config.data, overridden(values))
    directory, console = WorkDirectory(Path(values.workdir)), Console(stderr=True)
    evaluations = prompt(values.config, directory, console)
    for found in evaluations:
        show(found, Console())
    workdir = shlex.quote(str(directory.path))
    console.print(
        f"everything is in {directory.path}\nnext: python -m experiments.calibrate --config=calibrate_prompt "
        f"--workdir={workdir}",
        soft_wrap=True,
    )


def prompt(
    config: PromptedRunConfig, directory: WorkDirectory, console: Console = QUIET, scorer: ModelInUse | None = None
) -> list[Evaluation]:
    """Scores the validation and the test rows, writes the results, and returns them.

    Args:
      config: of the run.
      directory: of the run.
      console: for progress.
      scorer: the model, if it was already loaded.

    Raises:
      UserError: if the config, the rows, the model or the directory is invalid; nothing is written then.
    """
    check_writable(directory.path, f"--workdir={directory.path}")
    columns = columns_of(config.prompt, config.own_options)
    splits = _some(_read(config, columns), config)
    classes = _classes(config, splits)
    shots = choose_shots(splits.train, () if config.own_options else classes, config.prompt, config.seed)
    prompting = Prompting(config.prompt, classes, config.own_options, tuple(shots))
    scorer = scorer or scorer_of(config)
    prompted = PromptedRun(config, prompting, scorer.digest)
    prompted.check(directory)
    data = row_fingerprints(splits)
    notes = check_data(directory, data)
    model = prompt_model(prompted, scorer)
    parts = {name: rows for name in ("validation", "test") if (rows := getattr(splits, name))}
    for rows in parts.values():
        model.check(rows)
    for line in (*notes, *_introduction(model, splits, parts)):
        console.print(line)
    with directory.locked():
        prompted.save(directory)
        write_data_record(directory, config, data)
        # Priors are of classes, which rows with options of their own do not have.
        priors = {} if config.own_options else _priors(model, splits.train, config, directory, console)
        return [_evaluate(model, name, rows, priors, directory, console) for name, rows in parts.items()]


def _read(config: PromptedRunConfig, columns: Columns) -> Splits:
    try:
        return read_examples(config.data, *columns)
    except UserError as error:
        if any(f"has no column {name!r}" in str(error) for name in Template(config.prompt.item).columns):
            raise UserError(f"{error}; config.prompt.item={config.prompt.item!r} asks for it") from error
        raise


def scorer_of(config: PromptedRunConfig) -> ModelInUse:
    """The model to prompt.

    Raises:
      UserError: if it cannot be loaded.
    """
    if not config.model:
        raise UserError("config.model is empty: name a run's directory, hf:DIRECTORY or gguf:FILE")
    try:
        return load_scorer(config)
    except UserError as error:
        raise UserError(f"config.model={config.model}: {str(error).removeprefix('--workdir=')}") from error


def _evaluate(
    model: PromptedClassifier,
    name: str,
    rows: Sequence[Row],
    priors: Mapping[str, np.ndarray],
    directory: WorkDirectory,
    console: Console,
) -> Evaluation:
    scores = model.label_scores(
        _scored(model.answer_scores, rows, directory.scores(name), console, f"scoring {name} rows")
    )
    measured = model.measured(rows, scores)
    mass = float(scores.mass_N.mean())
    notes = measured.notes
    if mass < _LITTLE_MASS:
        notes += (
            f"the answers have {mass:.1%} of the probability after the prompt, so the model expects other text: try "
            "shots, an instruction, or other answers",
        )
    predictions = dataclasses.replace(measured.results.predictions, priors=priors)
    results = dataclasses.replace(measured.results, predictions=predictions)
    return write_results(results, directory, name, 1000, model.step, measured.cut, notes)


def _priors(
    model: PromptedClassifier,
    train: Sequence[Row],
    config: PromptedRunConfig,
    directory: WorkDirectory,
    console: Console,
) -> dict[str, np.ndarray]:
    """Logits of the same prompt without content, of random words of the training rows, and of its premise alone."""
    texts = [row[name] for row in train for name in model.prompting.template.columns]
    inputs = {
        "content_free": config.content_free,
        "domain": domain_texts(texts, config.domain_texts, config.seed),
    }
    as_rows: dict[str, tuple[list[Row], Score]] = {
        name: (model.rows_of_texts(some), functools.partial(model.answer_scores, truncate=True))
        for name, some in inputs.items()
        if some
    }
    as_rows["premise"] = (model.rows_of_texts([""]), model.premise_scores)
    return {
        name: model.label_scores(_scored(score, rows, directory.scores(f"prior_{name}"), console)).logits_NC
        for name, (rows, score) in as_rows.items()
    }


def _scored(
    score: Score, rows: Sequence[Row], path: Path, console: Console, doing: str = "scoring priors"
) -> list[AnswerScores]:
    """The scores of rows; those that a file holds are not computed again, and others are added to it."""
    path.parent.mkdir(exist_ok=True)
    known = continue_scores(path, rows)
    if known and len(rows) > 1:
        console.print(f"{doing}: {len(known):,} of {len(rows):,} are scored already")
    with console.progress(doing, len(rows)) as advance, open(path, "a", encoding="utf-8") as file:
        advance(len(known))
        for first in range(len(known), len(rows), _AT_ONCE):
            part = rows[first : first + _AT_ONCE]
            found = score(part)
            add_scores(file, part, found)
            known += found
            advance(len(part))
    return known


def _some(splits: Splits, config: PromptedRunConfig) -> Splits:
    """The rows to score, drawn from their split in its order."""

    def some(rows: list[Row], count: int) -> list[Row]:
        order = np.random.default_rng(config.data.split_seed).permutation(len(rows))
        return [rows[place] for place in sorted(order[: count or None])]

    return Splits(splits.train, some(splits.validation, config.validation_rows), some(splits.test, config.test_rows))


def _classes(config: PromptedRunConfig, splits: Splits) -> tuple[str, ...]:
    rows = [row for part in splits for row in part]
    if config.own_options:
        return LETTERS[: max(len(row["options"]) for row in rows)]
    return config.classes or tuple(sorted({row["label"] for row in splits.train}))


def _introduction(model: PromptedClassifier, splits: Splits, parts: dict[str, list[Row]]) -> list[str]:
    """What is about to be asked, with an example."""
    rows = next(iter(parts.values()))
    counts = ", ".join(f"{len(rows):,} {name} rows" for name, rows in parts.items())
    return [
        f"{len(model.prompting.shots)} shots of {len(splits.train):,} training rows; {counts}",
        f"the first prompt, which ends at |, and its answers:\n{model.shown(rows[0])}",
    ]


if __name__ == "__main__":
    run(main, define_flags, __doc__.strip(), resumable=True)
