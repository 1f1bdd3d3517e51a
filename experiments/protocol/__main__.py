"""Compares calibrations of a prompted model under many protocols, and counts the conclusions that the protocol decides.

python -m experiments.protocol --config=configs/protocol.py --config.model=gguf:FILE --workdir=runs/protocol

Each setting (a data set, a number of shots, a draw, an order, text or letters) is a run of experiments.prompt in the
work directory's folder `runs`. The tables are computed from the scores: protocol.md, .csv, .json and .png, and
label_efficiency.md, .csv and .png. A run that was stopped goes on where it was.
"""

from pathlib import Path

from absl import flags

from experiments.prompt import prompt, scorer_of
from experiments.protocol.cells import Cells
from experiments.protocol.conclusions import changes_of
from experiments.protocol.label_efficiency import main_settings, points, write_label_efficiency
from experiments.protocol.settings import ProtocolConfig, Setting, settings_of
from experiments.protocol.tables import all_flips, all_rows, write_tables
from lm.command_line import define_config_file, run
from lm.console import QUIET, Console
from lm.errors import UserError
from lm.inference.model_in_use import ModelInUse
from lm.runs.prompted_run import load_prompted
from lm.runs.work_directory import WorkDirectory


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command line."""
    define_config_file(values, ProtocolConfig)
    flags.DEFINE_string("workdir", None, "Directory for the runs and the tables.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Scores, and writes the tables."""
    if not values.workdir:
        raise UserError("--workdir is missing: name a directory for the results, such as --workdir=runs/protocol")
    directory, console = Path(values.workdir).expanduser(), Console(stderr=True)
    print(protocol(values.config, directory, console), end="")
    console.print(f"everything is in {directory}", soft_wrap=True)


def protocol(config: ProtocolConfig, directory: Path, console: Console = QUIET) -> str:
    """Scores what was not scored yet, writes the tables and returns them as Markdown.

    Raises:
      UserError: as `experiments.prompt.prompt`.
    """
    cells = Cells(score(config, directory, console))
    with console.progress("measuring settings", len(cells.runs)) as advance:
        rows = all_rows(config, cells, lambda: advance(1))
    with console.progress("comparing protocols", len(changes_of(config, list(cells.runs)))) as advance:
        found = all_flips(config, cells, lambda: advance(1))
    with console.progress("counting labels", len(main_settings(config, cells))) as advance:
        efficiency = points(config, cells, lambda: advance(1))
    text = write_tables(config, rows, found, list(dict.fromkeys(cells.notes)), directory)
    return f"{text}\n{write_label_efficiency(efficiency, directory)}"


def score(config: ProtocolConfig, directory: Path, console: Console) -> dict[Setting, WorkDirectory]:
    """Prompts the model in every setting, where that was not done yet; returns the runs.

    Raises:
      UserError: as `experiments.prompt.prompt`.
    """
    runs = {setting: WorkDirectory(directory / "runs" / setting.name) for setting in settings_of(config)}
    scorer: ModelInUse | None = None
    for number, (setting, run_directory) in enumerate(runs.items(), start=1):
        wanted = setting.config(config)
        # The results of the test rows are written last.
        if (run_directory.predictions / "test.metrics.json").exists() and load_prompted(run_directory).config == wanted:
            continue
        scorer = scorer or scorer_of(wanted)
        console.print(f"{number} of {len(runs)}: {setting.name}")
        prompt(wanted, run_directory, console, scorer)
    return runs


if __name__ == "__main__":
    run(main, define_flags, __doc__.strip(), resumable=True)
