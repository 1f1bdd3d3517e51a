"""Makes a work directory of a published model: a Hugging Face directory or a GGUF file.

python -m experiments.import_model --source=~/models/SmolLM2-135M --workdir=runs/smollm2
python -m experiments.import_model --source=model.gguf --workdir=runs/mine --config.dtype=bfloat16
python -m experiments.import_model --source=hf:HuggingFaceTB/SmolLM2-135M --workdir=runs/smollm2

The directory serves like that of a run that was trained here: generate, embed, init_from, export. Weights are read one
tensor at a time. Nothing in the source is executed, and pickled weights (.bin, .pt) are refused.
"""

import dataclasses
from pathlib import Path

from absl import flags

from lm.command_line import define_config, run
from lm.console import Console
from lm.errors import UserError
from lm.files import as_before_on_failure
from lm.models.parameter_paths import by_path
from lm.modules.config import DTYPES, ModelConfig
from lm.pretrained.hub import with_kind
from lm.pretrained.load import open_published
from lm.runs.checkpoints import Checkpoints
from lm.runs.data_record import write_data_record
from lm.runs.published_runs import published_config, published_run
from lm.runs.state import TrainState
from lm.runs.work_directory import WorkDirectory


@dataclasses.dataclass(frozen=True)
class ImportConfig:
    """How to keep the model.

    Attributes:
      dtype: of the parameters and of computing with them: float32, bfloat16 or float16.
      scan_layers: keep each layer's parameters stacked, as config.model.scan_layers does.
    """

    dtype: str = "float32"
    scan_layers: bool = False

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise UserError(f"config.dtype must be one of {', '.join(DTYPES)}; got {self.dtype!r}")


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command line."""
    define_config(values, ImportConfig)
    flags.DEFINE_string(
        "source", None, "Directory or .gguf file of a published model, or hf:owner/name.", flag_values=values
    )
    flags.DEFINE_string("workdir", None, "Directory to make.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Imports and says what is there."""
    if not values.source:
        raise UserError("--source is missing: name the directory or the .gguf file of a published model")
    if not values.workdir:
        raise UserError("--workdir is missing: name a directory to make, such as --workdir=runs/smollm2")
    import_model(with_kind(values.source), WorkDirectory(Path(values.workdir)), values.config, Console(stderr=True))


def import_model(source: str, directory: WorkDirectory, config: ImportConfig, console: Console) -> None:
    """Reads a published model and writes it as a run.

    Raises:
      UserError: if the source cannot be read or the directory not be written; no run is left then.
    """
    published = open_published(source)
    dtypes = {"dtype": config.dtype, "parameter_dtype": config.dtype}
    how = dataclasses.replace(published.config, **dtypes, scan_layers=config.scan_layers)
    run_config = published_config(source, published, how)
    directory.check(run_config)
    if directory.path.is_dir() and any(path.name != directory.lock.name for path in directory.path.iterdir()):
        raise UserError(f"{directory.path} is not empty: use another --workdir")
    found = published_run(published, run_config, console=console)
    with directory.locked(), as_before_on_failure(directory.path):
        directory.claim(run_config, found.tokenizer, found.classes)
        write_data_record(directory, run_config, {})
        checkpoints = Checkpoints(directory.checkpoints, origin=directory.origin(found.config))
        checkpoints.save(TrainState.of_params(found.params), {})
        checkpoints.close()
    count = sum(leaf.size for leaf in by_path(found.params).values())
    console.print(f"{published.family.name}: {count:,} parameters in {config.dtype}, {describe(found.config.model)}")


def describe(model: ModelConfig) -> str:
    """The shape in a few words."""
    return (
        f"{model.layers} layers, width {model.width}, vocabulary {model.size_of_vocabulary:,}, up to "
        f"{model.max_length:,} tokens"
    )


if __name__ == "__main__":
    run(main, define_flags, __doc__.strip())
