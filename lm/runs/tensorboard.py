"""What TensorBoard shows of a run besides its curves: settings, pictures and texts."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.image import imread
from tensorboardX import SummaryWriter
from tensorboardX.summary import hparams

from lm.configuration import flatten
from lm.runs.work_directory import WorkDirectory


def tag_of(name: str) -> str:
    """The name of a curve. TensorBoard groups by the first part: the many curves of token buckets get their own group.

    Args:
      name: of a metric, such as "validation/loss" or "validation/entropy_1of8/ece".
    """
    group, *rest = name.split("/")
    return "/".join([f"{group}_buckets" if len(rest) > 1 else group, *rest])


def add_settings(writer: SummaryWriter, config: Any, metric: str) -> None:
    """Adds the values of a config as hyperparameters, so that runs can be compared by them.

    Args:
      writer: of the run.
      config: dataclass.
      metric: name of the curve to compare by.
    """
    values = {
        name: value if isinstance(value, bool | int | float | str) else str(value)
        for name, value in flatten(config).items()
    }
    for summary in hparams(values, {metric: 0.0}):
        writer.file_writer.add_summary(summary)


def add_products(
    directory: WorkDirectory,
    step: int,
    pictures: Mapping[str, Path] | None = None,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Adds PNG files and texts, by tag, to a run's TensorBoard folder.

    Args:
      directory: of the run.
      step: of the checkpoint that they are of.
      pictures: files.
      texts: shown as they are.
    """
    with SummaryWriter(str(directory.tensorboard)) as writer:
        for tag, path in (pictures or {}).items():
            writer.add_image(tag, imread(path), step, dataformats="HWC")
        for tag, text in (texts or {}).items():
            writer.add_text(tag, textwrap.indent(text, " " * 4, lambda line: True), step)  # as code, not Markdown
