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
import hashlib
import json
import math
import shlex
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from absl import flags

from experiments.answer_confidence.asking import answers_of, check_record, write_record
from experiments.answer_confidence.config import FREE_TO_CHANGE, AnswerConfidenceConfig
from experiments.answer_confidence.similarity import same_meanings
from experiments.answer_confidence.table import Table, as_csv, as_json, as_markdown, make_table, save_picture
from lm.calibration.predictions import Predictions, judgements
from lm.command_line import define_config_file, overridden, run
from lm.console import QUIET, Console
from lm.data.config import check_overridden_sources
from lm.data.rows import Splits, read_examples
from lm.errors import UserError
from lm.evaluation.spans import span_metrics
from lm.files import check_writable, write_atomically, write_json
from lm.inference.language_models import LanguageModel
from lm.inference.load import load
from lm.inference.whole_answers import AnswerWriter, WholeAnswer
from lm.prompting.answer_confidence import KINDS, of_samples, of_writing, stated_confidence
from lm.prompting.questions import QuestionPrompting
from lm.prompting.shots import choose_shots
from lm.runs.data_record import Fingerprint
from lm.runs.work_directory import WorkDirectory
from lm.tasks.supervised import Row

_LITTLE_MASS = 0.1


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command line."""
    define_config_file(values, AnswerConfidenceConfig)
    flags.DEFINE_string("workdir", None, "Directory for the results.", flag_values=values)


def main(values: flags.FlagValues) -> int:
    """Asks, measures and prints; returns the exit status."""
    if not values.workdir:
        raise UserError("--workdir is missing: name a directory for the results")
    check_overridden_sources(values.config.data, overridden(values))
    directory, console = WorkDirectory(Path(values.workdir)), Console(stderr=True)
    try:
        table = answer_confidence(values.config, directory, console)
    except KeyboardInterrupt:
        console.print("stopped; run the same command to continue")
        return 128 + signal.SIGINT
    Console().print(as_markdown(table))
    best = shlex.quote(str(directory.path / "confidences" / table.lines[0].kind))
    console.print(
        f"everything is in {directory.path}\nnext: python -m experiments.calibrate --config=calibrate --workdir={best}",
        soft_wrap=True,
    )
    return 0


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
    """Writes confidences, as predictions and line by line, and the table."""
    judged = {name: _judged(config, rows, answers[name]) for name, rows in parts.items()}
    for name, rows in parts.items():
        lines = [
            {"place": row["place"], "question": row["question"], "accepted": row["answer"], **line}
            for row, line in zip(rows, judged[name], strict=True)
        ]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (directory.path / "rows").mkdir(exist_ok=True)
        write_atomically(directory.path / "rows" / f"{name}.jsonl", text)
    predictions = {
        kind: {name: _predictions(kind, rows, judged[name]) for name, rows in parts.items()}
        for kind in KINDS
        if any(kind in line["log_confidence"] for line in judged["validation"])
        and any(kind in line["log_confidence"] for line in judged["test"])
    }
    for kind, of_kind in predictions.items():
        for name, found in of_kind.items():
            found.save(directory.path / "confidences" / kind / "predictions" / f"{name}.npz")
    lengths = {line["id"]: line["tokens"] for line in judged["test"]}
    notes = _notes(judged)
    with console.progress("measuring", len(predictions)) as advance:
        table = make_table(
            predictions, lengths, config.calibrator, config.risk, config.assurance, config.settings, notes, advance
        )
    write_json(directory.path / "table.json", as_json(table))
    write_atomically(directory.path / "table.csv", as_csv(table))
    write_atomically(directory.path / "table.md", as_markdown(table))
    save_picture(table, directory.path / "risk_coverage.png")
    return table


def _judged(config: AnswerConfidenceConfig, rows: Sequence[Row], answers: Sequence[WholeAnswer]) -> list[dict]:
    """What is known of each row's answer: whether it is right, and the log of each confidence, by its kind."""
    chosen = [answer.chosen for answer in answers]
    metrics = span_metrics([each.answer.text for each in chosen], [row["answer"] for row in rows])
    exact_N, f1_N = (metrics[name].statistics_NK[:, 0] for name in ("exact_match", "f1"))
    right_N = f1_N >= config.least_f1 if config.least_f1 else exact_N == 1
    texts = [[each.answer.text, *(judge.text for judge in each.judges)] for each in chosen]
    same = same_meanings(config.similarity, [row["question"] for row in rows], texts)
    lines = []
    for number, (row, answer, each) in enumerate(zip(rows, answers, chosen, strict=True)):
        confidence = of_writing(each.answer) | of_samples(each, same[number] if same else None)
        if (log_p := answer.log_p_true) is not None:
            confidence["p_true"] = log_p
        if answer.stated is not None and (stated := stated_confidence(answer.stated)) is not None:
            confidence["stated"] = math.log(stated)
        lines.append(
            {
                "id": row["place"],
                "answer": each.answer.text,
                "right": bool(right_N[number]),
                "tokens": len(each.answer.log_probs),
                "log_confidence": confidence,
                "label_mass": answer.label_mass,
                "stated": answer.stated,
            }
        )
    return lines


def _predictions(kind: str, rows: Sequence[Row], lines: Sequence[dict]) -> Predictions:
    """Of the rows that have this confidence; rows that share a context are a cluster."""
    pairs = [(row, line) for row, line in zip(rows, lines, strict=True) if kind in line["log_confidence"]]
    contexts = [row.get("context") for row, _ in pairs]
    return judgements(
        np.array([line["log_confidence"][kind] for _, line in pairs]),
        np.array([line["right"] for _, line in pairs]),
        np.array([line["id"] for _, line in pairs]),
        np.array([_digest(context) for context in contexts]) if all(contexts) else None,
    )


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _notes(judged: Mapping[str, Sequence[dict]]) -> tuple[str, ...]:
    """What limits the table."""
    notes = []
    masses = [line["label_mass"] for line in judged["test"] if line["label_mass"] is not None]
    if masses and (mass := float(np.mean(masses))) < _LITTLE_MASS:
        notes.append(
            f"yes and no have {mass:.1%} of the probability after the prompt for P(True), so the model expects other "
            "text: change config.judging"
        )
    for name, lines in judged.items():
        asked = [line for line in lines if line["stated"] is not None]
        without = [line for line in asked if "stated" not in line["log_confidence"]]
        if without:
            notes.append(
                f"{len(without):,} of {len(asked):,} stated confidences of {name} rows are no percentage, such as "
                f"{without[0]['stated'][:40]!r}; these rows are left out there"
            )
    return tuple(notes)


if __name__ == "__main__":
    run(main, define_flags, __doc__.strip())
