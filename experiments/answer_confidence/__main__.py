"""Asks a language model questions, and measures how well different confidences know whether its answers are right.

python -m experiments.answer_confidence --config=answer_confidence --config.model=gguf:FILE --workdir=runs/answers
python -m experiments.calibrate --config=calibrate --workdir=runs/answers/confidences/agreement

Rows have a `question`, an `answer` (a text, or a list of accepted ones) and what else config.prompt.item names, such as
a `context`. Each question gets the greedy answer and samples; the model says whether its answer is right, and how
sure it is. Every kind of confidence is then judged on the same test rows: calibration error with its floor, proper
scores, ranking, its correlation with the length of answers, and a threshold with a guaranteed risk. The validation rows
fit calibrators and choose the threshold.

In the work directory: answers/SPLIT.jsonl, what the model wrote; confidences/KIND/predictions/SPLIT.npz, which
experiments.calibrate reads; rows/SPLIT.jsonl, one line a row; table.md, table.csv, table.json and risk_coverage.png. A
run that was stopped goes on where it was.
"""

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from absl import flags

from experiments.answer_confidence.asking import answers_of, check_record, write_record
from experiments.answer_confidence.config import FREE_TO_CHANGE, AnswerConfidenceConfig
from experiments.answer_confidence.judging import judged_answers, notes_on, predictions_of
from experiments.answer_confidence.table import Table, as_csv, as_json, as_markdown, make_table, save_picture
from lm.calibration.predictions import Predictions
from lm.command_line import define_config_file, overridden, run
from lm.console import QUIET, Console
from lm.data.config import check_overridden_sources
from lm.data.rows import Splits, read_examples
from lm.errors import UserError
from lm.files import check_writable, json_value, write_atomically, write_json
from lm.inference.language_models import LanguageModel
from lm.inference.load import load
from lm.inference.whole_answers import AnswerWriter, WholeAnswer
from lm.prompting.answer_confidence import KINDS
from lm.prompting.questions import QuestionPrompting
from lm.prompting.shots import choose_shots
from lm.runs.data_record import Fingerprint
from lm.runs.work_directory import WorkDirectory
from lm.tasks.supervised import Row


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command line."""
    define_config_file(values, AnswerConfidenceConfig)
    flags.DEFINE_string("workdir", None, "Directory for the results.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Asks, measures and prints."""
    if not values.workdir:
        raise UserError("--workdir is missing: name a directory for the results")
    check_overridden_sources(values.config.data, overridden(values))
    directory, console = WorkDirectory(Path(values.workdir)), Console(stderr=True)
    table = answer_confidence(values.config, directory, console)
    Console().print(as_markdown(table))
    best = max(table.lines, key=lambda line: np.nan_to_num(line.before.entry("auroc").value)).kind
    named = shlex.quote(str(directory.path / "confidences" / best))
    console.print(
        f"everything is in {directory.path}\n"
        f"next: python -m experiments.calibrate --config=calibrate --workdir={named}",
        soft_wrap=True,
    )


def answer_confidence(
    config: AnswerConfidenceConfig,
    directory: WorkDirectory,
    console: Console = QUIET,
    model: LanguageModel | None = None,
) -> Table:
    """Asks the validation and the test rows, writes the results, and returns the table.

    Args:
      config: of the run.
      directory: of the run.
      console: for progress.
      model: if it was already loaded.

    Raises:
      UserError: if the config, the rows, the model or the directory is invalid; nothing is written then.
    """
    check_writable(directory.path, f"--workdir={directory.path}")
    if directory.config.exists() or directory.prompt.exists():
        raise UserError(f"{directory.path} holds another kind of run: use another --workdir")
    splits = _read(config)
    shots = choose_shots(splits.train, (), config.prompt, config.seed)
    prompting = QuestionPrompting(config.prompt, config.judging, tuple(shots))
    writer = AnswerWriter(model or _load(config), prompting, config.answering)
    parts = {"validation": splits.validation, "test": splits.test}
    for rows in parts.values():
        writer.check(rows)
    record, path = _record(config, writer, parts), directory.path / "answers.json"
    check_record(path, record)
    counts = ", ".join(f"{len(rows):,} {name} rows" for name, rows in parts.items())
    console.print(f"{len(shots)} shots of {len(splits.train):,} training rows; {counts}")
    console.print(f"the first prompt, which ends at |:\n{writer.shown(splits.validation[0])}")
    with directory.locked():
        write_record(path, record)
        answers = {
            name: answers_of(
                writer, rows, directory.path / "answers" / f"{name}.jsonl", (config.answering.seed, number), console
            )
            for number, (name, rows) in enumerate(parts.items())
        }
        return _measure(config, parts, answers, directory, console)


def _read(config: AnswerConfidenceConfig) -> Splits:
    """The rows, as many of them as are asked for.

    Raises:
      UserError: if they cannot be read, or a part has none.
    """
    columns = QuestionPrompting(config.prompt, config.judging).columns
    try:
        splits = read_examples(config.data, ("question", *columns.needed), ("context",))
    except UserError as error:
        fields = {"prompt.item": config.prompt.item, "judging.item": config.judging.item}
        for name in columns.needed:
            for field, text in fields.items():
                if f"has no column {name!r}" in str(error) and f"{{{name}}}" in text:
                    raise UserError(f"{error}; config.{field}={text!r} asks for it") from error
        raise
    if not (splits.validation and splits.test):
        missing = "test" if splits.validation else "validation"
        raise UserError(f"there are no {missing} rows: set config.data.{missing}")
    return Splits(
        splits.train,
        *(
            _some(rows, count, config.data.split_seed)
            for rows, count in ((splits.validation, config.validation_rows), (splits.test, config.test_rows))
        ),
    )


def _some(rows: list[Row], count: int, seed: int) -> list[Row]:
    """So many rows, drawn at random, in their order; all for 0."""
    order = np.random.default_rng(seed).permutation(len(rows))
    return [rows[place] for place in sorted(order[: count or None])]


def _load(config: AnswerConfidenceConfig) -> LanguageModel:
    if not config.model:
        raise UserError("config.model is empty: name a run's directory, hf:DIRECTORY or gguf:FILE")
    try:
        model = load(config.model, config.checkpoint, dtype=config.dtype)
    except UserError as error:
        raise UserError(f"config.model={config.model}: {str(error).removeprefix('--workdir=')}") from error
    if not isinstance(model, LanguageModel):
        raise UserError(f"config.model={config.model} is {model.kind}: use a model that generates text")
    return model


def _record(config: AnswerConfidenceConfig, writer: AnswerWriter, parts: Mapping[str, Sequence[Row]]) -> dict:
    """Everything that the answers depend on."""
    asked = {name: value for name, value in dataclasses.asdict(config).items() if name not in FREE_TO_CHANGE}
    return {
        "config": asked,
        "model": writer.model.digest,
        "shots": [dict(shot) for shot in writer.prompting.shots],
        "rows": {name: Fingerprint.of_rows(rows).digest for name, rows in parts.items()},
    }


def _measure(
    config: AnswerConfidenceConfig,
    parts: Mapping[str, Sequence[Row]],
    answers: Mapping[str, Sequence[WholeAnswer]],
    directory: WorkDirectory,
    console: Console,
) -> Table:
    """Writes confidences, line by line and as predictions, and the table."""
    judged = {
        name: judged_answers(rows, answers[name], config.similarity, config.least_f1) for name, rows in parts.items()
    }
    (directory.path / "rows").mkdir(exist_ok=True)
    for name, some in judged.items():
        lines = [json.dumps(json_value(dataclasses.asdict(answer)), ensure_ascii=False) + "\n" for answer in some]
        write_atomically(directory.path / "rows" / f"{name}.jsonl", "".join(lines))
    predictions: dict[str, dict[str, Predictions]] = {}
    for kind in KINDS:
        of_kind = {name: found for name, some in judged.items() if (found := predictions_of(some, kind)) is not None}
        for name, found in of_kind.items():
            found.save(directory.path / "confidences" / kind / "predictions" / f"{name}.npz")
        if len(of_kind) == len(judged):
            predictions[kind] = of_kind
    lengths = {answer.place: answer.tokens for answer in judged["test"]}
    with console.progress("measuring", len(predictions)) as advance:
        table = make_table(
            predictions,
            lengths,
            config.calibrator,
            config.risk,
            config.assurance,
            config.settings,
            notes_on(judged),
            advance,
        )
    write_json(directory.path / "table.json", as_json(table))
    write_atomically(directory.path / "table.csv", as_csv(table))
    write_atomically(directory.path / "table.md", as_markdown(table))
    save_picture(table, directory.path / "risk_coverage.png")
    return table


if __name__ == "__main__":
    run(main, define_flags, __doc__.strip(), resumable=True)
