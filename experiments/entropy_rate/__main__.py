"""Entropy-rate drift: is the text that language models write more random than the text that they learned from?

python -m experiments.entropy_rate --config=configs/entropy_rate.py --workdir=runs/entropy_rate
python -m experiments.entropy_rate --config=configs/entropy_rate.py --workdir=runs/entropy_rate_of_mine \\
    --config.ladder="()" --config.models="('runs/shakespeare_512',)"

Trains the ladder of models that the config names, each an ordinary run below models/, and measures them: the loss on
held-out text, the entropy of what they write, and both after temperature scaling and after the look-ahead correction of
Braverman et al. 2020. A run that was stopped goes on where it was.
"""

import json
import shlex
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from experiments.entropy_rate.ladder import EntropyRateConfig, run_config
from experiments.entropy_rate.measuring import measurable, measure
from experiments.entropy_rate.picture import save_picture
from experiments.entropy_rate.table import as_csv, as_json, as_markdown, make_rows
from experiments.pretrain import pretrain
from lm.command_line import define_config_file, run
from lm.console import QUIET, Console
from lm.errors import UserError
from lm.files import check_writable, write_atomically, write_json, written_atomically
from lm.inference.language_models import LanguageModel
from lm.inference.load import load
from lm.runs.config import PretrainConfig
from lm.runs.work_directory import WorkDirectory

# The settings that change what is measured of a model.
_SETTINGS = (
    *("prompt_tokens", "new_tokens", "documents", "fit_documents", "seed"),
    *("look_ahead_documents", "look_ahead_every", "look_ahead_vocabulary"),
)


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command line."""
    define_config_file(values, EntropyRateConfig)
    flags.DEFINE_string("workdir", None, "Directory for the models and the table.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Trains, measures and prints the table."""
    if not values.workdir:
        raise UserError("--workdir is missing: name a directory for the results, such as --workdir=runs/entropy_rate")
    directory, console = Path(values.workdir).expanduser(), Console(stderr=True)
    check_writable(directory, f"--workdir={directory}")
    text = entropy_rates(values.config, directory, console)
    print(text, end="")
    workdir = shlex.quote(str(directory))
    console.print(
        f"everything is in {directory}: table.md, table.csv, table.json and entropy.png\nnext: "
        f"python -m experiments.generate --workdir={workdir}/models/NAME",
        soft_wrap=True,
    )


def entropy_rates(config: EntropyRateConfig, directory: Path, console: Console = QUIET) -> str:
    """Trains what is missing, measures what has changed, and writes the table.

    Args:
      config: of the experiment.
      directory: for everything.
      console: for progress.

    Returns:
      The table.

    Raises:
      UserError: if a run cannot be trained or a model cannot be measured.
      KeyboardInterrupt: if training was stopped by a signal.
    """
    if not (config.ladder or config.models):
        raise UserError("config.ladder and config.models are empty: name models to train or to measure")
    others = {path: _loaded(path, config) for path in config.models}
    (directory / "measured").mkdir(parents=True, exist_ok=True)
    found: dict[str, Mapping[str, np.ndarray]] = {}
    for rung in config.rungs:
        run_directory = directory / "models" / rung.name
        _train(run_config(config, rung), WorkDirectory(run_directory), console)
        found[rung.name] = _measured(
            measurable(load(run_directory), config, rung.name), config, rung.name, directory, console
        )
        write_table(found, directory)
    for path, model in others.items():
        found[Path(path).name] = _measured(model, config, Path(path).name, directory, console)
    return write_table(found, directory)


def write_table(found: Mapping[str, Mapping[str, np.ndarray]], directory: Path) -> str:
    """Writes the table in three forms and the picture; returns the table as Markdown."""
    rows = [row for name, arrays in found.items() for row in make_rows(name, arrays)]
    write_json(directory / "table.json", as_json(rows))
    write_atomically(directory / "table.csv", as_csv(rows))
    write_atomically(directory / "table.md", text := as_markdown(rows))
    save_picture(found, directory / "entropy.png")
    return text


def _loaded(path: str, config: EntropyRateConfig) -> LanguageModel:
    """A model that was trained elsewhere.

    Raises:
      UserError: if it cannot be loaded or measured.
    """
    try:
        model = load(path)
    except UserError as error:
        raise UserError(f"config.models: {str(error).removeprefix('--workdir=')}") from error
    return measurable(model, config, path)


def _train(config: PretrainConfig, directory: WorkDirectory, console: Console) -> None:
    """Trains a run, unless it is finished."""
    directory.check(config)
    if (directory.checkpoints / str(config.training.steps)).exists():
        return
    if pretrain(config, directory, console).stopped_by:
        raise KeyboardInterrupt


def _measured(
    model: LanguageModel, config: EntropyRateConfig, name: str, directory: Path, console: Console
) -> Mapping[str, np.ndarray]:
    """What `measure` returns, from its file if this model was measured with the same settings."""
    path = directory / "measured" / f"{name}.npz"
    settings = json.dumps({key: getattr(config, key) for key in _SETTINGS} | {"model": model.digest})
    try:
        with np.load(path, allow_pickle=False) as file:
            known = dict(file)
        if str(known["settings"]) == settings:
            return known
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # missing or damaged: it is written again
    found: dict[str, Any] = measure(model, config, name, console) | {"settings": np.array(settings)}
    with written_atomically(path) as temporary:
        np.savez(temporary, **found)
    return found


if __name__ == "__main__":
    run(main, define_flags, __doc__.strip(), resumable=True)
