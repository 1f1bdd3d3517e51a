"""Predicts labels, tags, answers or texts with a fine-tuned run, for rows without any.

python -m experiments.predict --workdir=runs/sst2 --text="A quiet film." --text="Not for me."
python -m experiments.predict --workdir=runs/sst2 --config.source=csv:new.csv --output=labelled.csv
python -m experiments.predict --workdir=runs/sst2 --calibrator=temperature < texts.txt > predictions.jsonl

Rows come from --config.source, --text or, a text per line, standard input. Each prediction is a JSON object per line
(CSV for --output=NAME.csv): the row's own columns, then `predicted`, `confidence` and, for a classifier, the
probabilities, calibrated ones too with --calibrator. Results go to standard output unless there is an --output.
"""

import contextlib
import csv
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from absl import flags

from lm.command_line import define_config, run
from lm.console import QUIET, Console
from lm.data.config import ExamplesConfig
from lm.data.files import decode
from lm.data.rows import TARGETS, Input, clean_row, read_inputs
from lm.errors import UserError
from lm.files import json_value, written_atomically
from lm.inference.load import load
from lm.inference.model_in_use import ModelInUse
from lm.inference.task_model import Predicted, TaskModel
from lm.tasks.supervised import Columns

_BATCHES_AT_ONCE = 8


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """What to predict.

    Attributes:
      source: rows, such as "csv:new.csv" or "jsonl:new.jsonl"; empty: texts from --text or standard input.
      columns: what `source` calls the task's columns, as in "text=review". Empty: as in the run's own data.
      delimiter: of `source`, as config.data.delimiter. Empty: as in the run's own data; so for the next two.
      quoting: of `source`, as config.data.quoting.
      header: names of the columns of `source`, as config.data.header; "()" if the file has a header, though the run's
        own files have none.
      truncate: truncate texts that are too long for the model, even if the run's config does not.
    """

    source: str = ""
    columns: tuple[str, ...] = ()
    delimiter: str = ""
    quoting: str = ""
    header: tuple[str, ...] | None = None
    truncate: bool = False


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command line."""
    define_config(values, PredictConfig)
    flags.DEFINE_string("workdir", None, "Directory of a fine-tuned or prompted run.", flag_values=values)
    flags.DEFINE_multi_string("text", [], "A text; may be given several times.", flag_values=values)
    flags.DEFINE_string("checkpoint", "best", "Which checkpoint: best, last or a step.", flag_values=values)
    flags.DEFINE_string(
        "calibrator",
        None,
        "Name of a calibrator in the run's calibration/, such as temperature, or path of one.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "model", "", "For a prompted run: where the model is, if not where its prompt.json says.", flag_values=values
    )
    flags.DEFINE_string(
        "output", None, "File for the predictions, .jsonl or .csv; standard output if not given.", flag_values=values
    )


def main(values: flags.FlagValues) -> None:
    """Predicts and writes."""
    if not values.workdir:
        raise UserError("--workdir is missing: name the directory of a fine-tuned run")
    output = None if values.output is None else _checked_output(Path(values.output).expanduser())
    config = values.config
    if values.text and config.source:
        raise UserError("--text and --config.source are two sources: leave one out")
    if config.columns and not config.source:
        raise UserError("config.columns has no effect without config.source: leave it out")
    console = Console(stderr=True)
    model = load(values.workdir, values.checkpoint, values.calibrator, model=values.model)
    if not isinstance(model, TaskModel):
        raise UserError(
            f"this run is {model.kind}, pretrained and not fine-tuned on a task: use experiments.{_suited(model)}, or "
            "lm.load in Python"
        )
    if config.source:
        inputs = inputs_of_source(config, model.data, model.columns, console)
    else:
        texts = values.text or lines_of_standard_input("name rows with --config.source, give --text")
        inputs = inputs_of_texts(texts, model)
    if note := unknown_note(model, inputs):
        console.print(note)
    # A bar would be drawn into results that appear on the same terminal.
    on_screen = output is None and sys.stdout is not None and sys.stdout.isatty()
    progress = QUIET if on_screen else console
    _write(predictions(model, inputs, config.truncate or None, console, progress), inputs, output)
    used = f" with the calibrator {model.calibrator.name}" if model.calibrator else ""
    where = f", in {output}" if output else ""
    unit = "prediction" if len(inputs) == 1 else "predictions"
    console.print(f"{len(inputs):,} {unit} of checkpoint {model.step}{used}{where}")


def _suited(model: ModelInUse) -> str:
    return "generate" if "generate" in model.uses else "embed"


def inputs_of_source(config: PredictConfig, own: ExamplesConfig, columns: Columns, console: Console) -> list[Input]:
    """The rows of `config.source`; says which of their columns are ignored.

    Args:
      config: names them.
      own: how the run's own rows were read.
      columns: of rows.
      console: to print on.

    Raises:
      UserError: if they cannot be read.
    """
    data = own.of_other_file(config.columns, config.delimiter, config.quoting, config.header)
    inputs = read_inputs(config.source, "config.source", data, *columns)
    for name in columns.needed:
        column = data.column_names.get(name, name)
        if name in TARGETS and any(column in each.given for each in inputs):
            console.print(f"the column {column!r} is not used: experiments.evaluate compares predictions with it")
    return inputs


def inputs_of_texts(texts: Sequence[str], model: TaskModel) -> list[Input]:
    """Rows of texts, for a task that reads one text.

    Raises:
      UserError: for a task that reads several, or a text that is empty.
    """
    names = [name for name in model.columns.needed if name not in TARGETS]
    if len(names) > 1:
        raise UserError(
            f"this run reads {' and '.join(names)}: name a file that has these columns, as in "
            "--config.source=jsonl:FILE or csv:FILE"
        )
    inputs = []
    for number, text in enumerate(texts, 1):
        if not text.strip():
            raise UserError(f"text {number} is empty: remove it")
        row = {names[0]: text.split() if names[0] == "words" else text}
        inputs.append(Input(clean_row({**row, "place": f"text {number}"}, model.data.cleaning), row))
    return inputs


def unknown_note(model: TaskModel, inputs: Sequence[Input]) -> str:
    """A line if most of the input is unknown to the run's tokenizer, else ""."""
    texts = [each.row[name] for each in inputs for name in each.row.keys() - {"place", "id"}]
    unknown = model.tokenizer.mostly_unknown([text if isinstance(text, str) else " ".join(text) for text in texts])
    return unknown and f"(!) {unknown} to the run's tokenizer: it was trained on other text"


def predictions(
    model: TaskModel, inputs: Sequence[Input], truncate: bool | None, console: Console, progress: Console
) -> Iterator[dict[str, Any]]:
    """Yields the columns of each row and its prediction; shows its progress, and says how many rows were truncated.

    Raises:
      UserError: for a row that does not fit the task, or has a column that a prediction needs.
    """
    size = _BATCHES_AT_ONCE * model.rows_per_batch
    names = {name for each in inputs for name in each.given}
    cut = 0
    with progress.progress("predicting", len(inputs)) as advance:
        for first in range(0, len(inputs), size):
            part = inputs[first : first + size]
            found: Predicted = model.predict_rows([each.row for each in part], truncate)
            cut += found.cut
            for one, prediction in zip(part, found.predictions, strict=True):
                result = prediction.to_json()
                if taken := names & result.keys():
                    raise UserError(f"the rows have a column {min(taken)!r}, as predictions do: rename it")
                yield {**one.given, **result}
            advance(len(part))
    if cut:
        console.print(f"truncated, because they are too long for the model: {cut:,} rows")


def _checked_output(path: Path) -> Path:
    if path.suffix not in (".jsonl", ".csv"):
        raise UserError(f"--output={path} must end in .jsonl or .csv")
    if path.is_dir() or not path.parent.is_dir():
        raise UserError(f"--output={path}: {'that is a folder' if path.is_dir() else 'there is no such folder'}")
    return path


def lines_of_standard_input(instead: str = "give --text") -> list[str]:
    """The texts that are piped in.

    Args:
      instead: what else a user can do, for the message.

    Raises:
      UserError: if there are none.
    """
    if sys.stdin is None or sys.stdin.isatty():
        raise UserError(f"there are no texts: {instead}, or pipe in a text per line")
    lines = [decode(line, f"line {number} of standard input") for number, line in enumerate(sys.stdin.buffer, 1)]
    if not lines:
        raise UserError("standard input is empty: name rows with --config.source, or give --text")
    return [lines[0].removeprefix("\ufeff").rstrip("\r\n"), *(line.rstrip("\r\n") for line in lines[1:])]


def _write(results: Iterator[dict[str, Any]], inputs: Sequence[Input], output: Path | None) -> None:
    with _opened(output) as file:
        write: Callable[[dict[str, Any]], None]
        if output is not None and output.suffix == ".csv":
            write = _csv_writer(file, list(dict.fromkeys(name for each in inputs for name in each.given)))
        else:
            plain = (file.encoding or "").lower().replace("-", "") != "utf8"
            # Parquet has types that JSON lacks, such as dates.
            write = lambda result: print(json.dumps(json_value(result), ensure_ascii=plain, default=str), file=file)  # noqa: E731
        for result in results:
            write(result)


@contextlib.contextmanager
def _opened(output: Path | None) -> Iterator[TextIO]:
    if output is None:
        yield sys.stdout
        return
    try:
        with written_atomically(output) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
            yield file
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror or error}") from error


def _csv_writer(file: TextIO, columns: Sequence[str]) -> Callable[[dict[str, Any]], None]:
    """Writes the header with the first row; lists become JSON, and each class has its own columns."""
    writer: csv.DictWriter | None = None

    def write(result: dict[str, Any]) -> None:
        nonlocal writer
        cells = dict(_cells(result, columns))
        if writer is None:
            writer = csv.DictWriter(file, list(dict.fromkeys([*columns, *cells])), lineterminator="\n")
            writer.writeheader()
        writer.writerow(cells)

    return write


def _cells(result: Mapping[str, Any], columns: Sequence[str]) -> Iterator[tuple[str, Any]]:
    for name, value in json_value(dict(result)).items():
        if isinstance(value, dict) and name not in columns:
            yield from ((f"{name}.{inner}", cell) for inner, cell in value.items())
        else:
            yield (
                name,
                (json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, dict | list) else value),
            )


if __name__ == "__main__":
    run(main, define_flags, __doc__.strip())
