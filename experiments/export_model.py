"""Writes a run's model as a directory that transformers reads, with a model card and its calibrators.

python -m experiments.export_model --workdir=runs/sst2 --output=exported/sst2
python -m experiments.export_model --workdir=runs/smollm2 --output=exported/smollm2 --config.dtype=bfloat16

README.md says what was trained, on what, how good the model is and how well calibrated, from the results in the run's
directory; calibration/ holds its table, its report and its fitted calibrators.
"""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import jax
from absl import flags

from lm.calibration.calibrators import Fitted
from lm.command_line import define_config, run
from lm.console import Console
from lm.errors import UserError
from lm.files import as_before_on_failure, write_atomically
from lm.inference.load import in_use
from lm.modules.config import DTYPES
from lm.pretrained.export import check_output, plan_export
from lm.runs.config import FinetuneConfig
from lm.runs.model_card import model_card
from lm.runs.published_runs import sentence_encoding
from lm.runs.trained_run import TrainedRun, load_run
from lm.runs.work_directory import WorkDirectory
from lm.tasks.sequence_to_sequence import SequenceToSequence

_REPORTS = ("report.html", "table.csv", "comparison.json")


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """How to write the model.

    Attributes:
      dtype: of the weights: float32, bfloat16 or float16; empty: as the run keeps them.
    """

    dtype: str = ""

    def __post_init__(self):
        if self.dtype and self.dtype not in DTYPES:
            raise UserError(f"config.dtype must be one of {', '.join(DTYPES)}; got {self.dtype!r}")


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command line."""
    define_config(values, ExportConfig)
    flags.DEFINE_string("workdir", None, "Directory of a run.", flag_values=values)
    flags.DEFINE_string("output", None, "Directory to make.", flag_values=values)
    flags.DEFINE_string("checkpoint", "best", "Which checkpoint: best, last or a step.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Exports."""
    for name, hint in (("workdir", "name the directory of a run"), ("output", "name a directory to make")):
        if not getattr(values, name):
            raise UserError(f"--{name} is missing: {hint}")
    output, directory = Path(values.output).expanduser(), WorkDirectory(Path(values.workdir))
    export_model(directory, output, values.config, values.checkpoint, Console(stderr=True))


def export_model(
    directory: WorkDirectory, output: Path, config: ExportConfig, checkpoint: str, console: Console
) -> None:
    """Writes the model of a run, its card and its calibrators.

    Raises:
      UserError: if the run cannot be read, no published family has such a model, or the output cannot be written.
    """
    check_output(output)
    exported = load_run(directory, checkpoint)
    task, classes = _head(exported)
    sentences = sentence_encoding(exported.config)
    plan = plan_export(exported.model_config, exported.params, task, classes, exported.config.imported_type, sentences)
    calibrators, left = usable_calibrators(directory, exported)
    card = model_card(exported, directory, output.absolute().name, calibrators)
    with as_before_on_failure(output):
        plan.write(output, exported.params, exported.tokenizer, config.dtype)
        if directory.calibration.is_dir():
            (output / "calibration").mkdir(exist_ok=True)
            for name in (*_REPORTS, *(f"{name}.json" for name in calibrators)):
                if (directory.calibration / name).is_file():
                    shutil.copyfile(directory.calibration / name, output / "calibration" / name)
        write_atomically(output / "README.md", card)
    for note in left:
        console.print(f"(!) {note}")
    count = sum(leaf.size for leaf in jax.tree.leaves(exported.params))
    console.print(f"{plan.family.name}: {count:,} parameters of checkpoint {exported.step} are in {output}")


def _head(exported: TrainedRun) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """The task's settings and classes, for a model with a head; one that generates text has none."""
    if not isinstance(exported.config, FinetuneConfig) or isinstance(exported.task, SequenceToSequence):
        return None, ()
    return dataclasses.asdict(exported.config.task), exported.classes


def usable_calibrators(directory: WorkDirectory, exported: TrainedRun) -> tuple[list[str], list[str]]:
    """Names of the calibrators that were fitted to this model, and why others stay."""
    usable, left = [], []
    for path in sorted(directory.calibration.glob("*.json")):
        if path.name in _REPORTS:
            continue
        try:
            in_use(exported, Fitted.load(path))
        except UserError as error:
            left.append(f"{path.name} is left out: {error}")
        else:
            usable.append(path.stem)
    return usable, left


if __name__ == "__main__":
    run(main, define_flags, __doc__.strip())
