"""The model card of an exported run: what was trained, on what, how good and how well calibrated it is, in Markdown.

Figures come from files that the run's own commands wrote; where there are none the card says so.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm.errors import UserError
from lm.files import is_unchanged, read_json, read_json_object
from lm.pretrained.load import is_published
from lm.runs.config import FinetuneConfig, RunConfig
from lm.runs.data_record import recorded_data
from lm.runs.trained_run import TrainedRun
from lm.runs.work_directory import WorkDirectory
from lm.statistics.units import shown

SPLITS = ("validation", "test")
_METRICS = {"ece": "ECE", "nll": "NLL", "brier": "Brier score", "accuracy": "accuracy"}
_PERCENT = ("ece", "accuracy")


def model_card(run: TrainedRun, directory: WorkDirectory, name: str, calibrators: Sequence[str]) -> str:
    """The text of README.md.

    Args:
      run: that is exported.
      directory: of the run.
      name: of the model.
      calibrators: names of the calibrators that go with it.

    Raises:
      UserError: if a file with results is damaged.
    """
    parts = [
        _front_matter(run.config),
        f"# {name}",
        _training(run, directory),
        _results(directory, run.step),
        _calibration(directory),
        _use(calibrators, suggested_calibrator(calibrators, directory)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(config: RunConfig) -> str:
    lines = ["---", "library_name: transformers", "tags: [calibration, calibrated-lm]"]
    base = base_model(config)
    if base.count("/") == 1 and not base.startswith(("~", "/", ".")):
        lines.append(f"base_model: {base.partition('@')[0]}")
    return "\n".join([*lines, "---"])


def base_model(config: RunConfig) -> str:
    """The published model that a run holds or started from: "owner/name", or a path; "" if there is none."""
    source = config.imported_from or config.init_from
    return source.partition(":")[2] if is_published(source) else ""


def _training(run: TrainedRun, directory: WorkDirectory) -> str:
    config = run.config
    if config.imported_from:
        return f"## Training\n\nThe published model {_without_folder(base_model(config))}, unchanged."
    lines = []
    if isinstance(config, FinetuneConfig):
        classes = f" ({', '.join(run.classes)})" if 0 < len(run.classes) <= 20 else ""
        lines.append(f"- task: {config.task.name.replace('_', ' ')}{classes}")
        sources = {name: getattr(config.data, name) for name in ("train", *SPLITS)}
    else:
        lines.append(f"- objective: {config.objective.name.replace('_', ' ')}")
        sources = {"train": config.data.source, "validation": config.data.validation_source}
    if config.init_from:
        lines.append(f"- started from: {_without_folder(base_model(config) or config.init_from)}")
    lines += [f"- {name} data: {_without_folder(source)}" for name, source in sources.items() if source]
    if recorded := recorded_data(directory):
        lines.append("- size: " + ", ".join(f"{name} {each.size}" for name, each in recorded.items()))
    lines.append(f"- checkpoint: step {run.step:,}, seed {config.seed}, batches of {config.training.batch_size}")
    lines.append(f"- optimizer: {config.optimizer.name}, learning rate {config.optimizer.learning_rate:g}")
    return "\n".join(["## Training", "", *lines])


def _without_folder(source: str) -> str:
    """A source without the folders of this machine."""
    kind, colon, path = source.rpartition(":") if not os.path.isabs(source) else ("", "", source)
    return f"{kind}{colon}{Path(path).name}" if os.path.isabs(os.path.expanduser(path)) else source


def _results(directory: WorkDirectory, step: int) -> str:
    """Tables of what `experiments.evaluate` measured of this checkpoint."""
    tables = []
    for split in SPLITS:
        path = directory.predictions / f"{split}.metrics.json"
        if not path.exists():
            continue
        record = read_json(path)
        if not isinstance(record, dict) or not is_unchanged(record):
            raise UserError(f"{path} was changed after it was written: run experiments.evaluate again")
        if record["checkpoint"] != step:
            continue
        rows = [
            (name, shown(name, figure["value"]), _interval(name, figure))
            for name, figure in record["metrics"].items()
            if figure["value"] is not None
        ]
        caption = f"{split}: {record['rows']:,} rows"
        tables.append("\n".join([caption, "", *_table(("", "value", "95% interval"), rows)]))
    return "\n\n".join(["## Results", *tables]) if tables else ""


def _interval(name: str, figure: Mapping[str, Any]) -> str:
    if figure.get("low") is None or figure.get("high") is None:
        return ""
    return f"{shown(name, figure['low'])} to {shown(name, figure['high'])}"


def _calibration(directory: WorkDirectory) -> str:
    """The table of `experiments.calibrate`."""
    path = directory.calibration / "comparison.json"
    if not path.exists():
        return "## Calibration\n\nNot measured: run `python -m experiments.calibrate` before the export."
    try:
        comparison = read_json(path)
        names = [name for name in _METRICS if name in comparison["methods"][0]["metrics"]]
        rows = [
            (method["label"], *(_measured(name, method["metrics"][name]) for name in names))
            for method in comparison["methods"]
        ]
        items = comparison["items"]["test"]
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(f"{path} is damaged: run experiments.calibrate again") from error
    heads = ("", *(_METRICS[name] for name in names))
    about = (
        f"On {items:,} held-out items, with 95% intervals; for the ECE also its noise floor, which a perfectly "
        "calibrated model would show by chance."
    )
    return "\n".join(["## Calibration", "", about, "", *_table(heads, rows)])


def suggested_calibrator(calibrators: Sequence[str], directory: WorkDirectory) -> str:
    """The calibrator that `experiments.calibrate` suggested, if it travels; "" otherwise."""
    path = directory.calibration / "comparison.json"
    name = read_json_object(path).get("suggested", "") if path.exists() else ""
    return name if name in calibrators else ""


def _measured(name: str, entry: Mapping[str, Any]) -> str:
    def value(number: float) -> str:
        return f"{100 * number:.2f}%" if name in _PERCENT else f"{number:.4f}"

    text = value(entry["value"])
    if entry["low"] is not None and entry["high"] is not None:
        text += f" ({value(entry['low'])} to {value(entry['high'])})"
    return text + (f", floor {value(entry['floor_mean'])}" if entry.get("floor_mean") is not None else "")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines]


def _use(calibrators: Sequence[str], suggested: str) -> str:
    chosen = f', calibrator="{suggested}"' if suggested else ""
    lines = ["## Use", "", "```python", "import lm", "", f'model = lm.load("hf:DIRECTORY"{chosen})', "```"]
    if calibrators:
        names = ", ".join(f"`calibration/{name}.json`" for name in calibrators)
        lines += ["", f"Fitted calibrators travel with the model: {names}. They act on logits, before the softmax."]
    return "\n".join(lines)
