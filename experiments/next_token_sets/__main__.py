"""Conformal sets of next tokens at full vocabulary: coverage, size and frequency, before and after temperature scaling.

python -m experiments.next_token_sets --config=configs/next_token_sets.py --config.model=gguf:FILE \\
    --workdir=runs/next_token_sets

A decoder predicts tokens of documents. Its hidden states are written once (hidden/), then the documents are split at
random several times into those for a temperature, for the thresholds and for testing (splits/), and the means over
splits are printed and written: table.md, table.csv, results.json and sets.png. A run that was stopped goes on where it
was.

A set holds the tokens that may come next, and the next token is among them with a given probability. Documents are the
clusters of all intervals, since the tokens of one document depend on each other.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from experiments.next_token_sets.documents import (
    TokenStates,
    WindowConfig,
    encode_documents,
    read_documents,
    token_states,
)
from experiments.next_token_sets.measurement import SetsConfig, measure, split_documents
from experiments.next_token_sets.picture import save_picture
from experiments.next_token_sets.table import as_csv, as_markdown, summarize
from lm.command_line import define_config_file, run
from lm.configuration import check_seed
from lm.console import QUIET, Console
from lm.data.config import DataConfig
from lm.errors import UserError
from lm.files import (
    check_writable,
    is_unchanged,
    json_value,
    read_json_object,
    with_digest,
    write_atomically,
    write_json,
)
from lm.inference.language_models import LanguageModel
from lm.inference.load import load
from lm.inference.predictions import logit_factors


@dataclasses.dataclass(frozen=True)
class NextTokenSetsConfig:
    """The experiment.

    Attributes:
      seed: for drawing documents and windows.
      model: work directory of a run, or a published model (hf:DIRECTORY, hf:owner/name or gguf:FILE); a decoder.
      checkpoint: of a run: "best", "last" or a step.
      dtype: of a published model: "float32", "bfloat16" or "float16".
      data: the documents: those of the validation split. Of a run's own data these are the ones that it has not seen.
      documents: how many of them; 0: all.
      windows: which tokens of a document are predicted.
      sets: splits of the documents, and sets.
    """

    seed: int = 0
    model: str = ""
    checkpoint: str = "best"
    dtype: str = "float32"
    data: DataConfig = DataConfig()
    documents: int = 0
    windows: WindowConfig = WindowConfig()
    sets: SetsConfig = SetsConfig()

    def __post_init__(self):
        check_seed("config.seed", self.seed)
        if self.documents < 0:
            raise UserError(f"config.documents must not be negative, got {self.documents}")


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command line."""
    define_config_file(values, NextTokenSetsConfig)
    flags.DEFINE_string("workdir", None, "Directory for the results.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Runs the experiment and prints its table."""
    if not values.workdir:
        raise UserError(
            "--workdir is missing: name a directory for the results, such as --workdir=runs/next_token_sets"
        )
    folder, console = Path(values.workdir).expanduser(), Console(stderr=True)
    found = next_token_sets(values.config, folder, console)
    print(as_markdown(found), end="")
    console.print(f"everything is in {folder}: table.md, table.csv, results.json, sets.png")


def next_token_sets(
    config: NextTokenSetsConfig, folder: Path, console: Console = QUIET, model: LanguageModel | None = None
) -> dict[str, Any]:
    """Runs the experiment, writes the results into a folder, and returns them.

    Args:
      config: of the experiment.
      folder: for the results.
      console: for progress.
      model: the decoder, if it was already loaded.

    Raises:
      UserError: if the config, the model or the documents are invalid, or the folder holds those of others.
    """
    check_writable(folder, f"--workdir={folder}")
    model = model or load_decoder(config)
    documents = encode_documents(model, read_documents(config.data, config.documents, config.seed), config.windows)
    split_documents(len(documents), config.sets, 0)  # fails if there are too few
    states = token_states(model, documents, config.windows, config.seed, folder / "hidden", console)
    factors = logit_factors(model.model, model.params, states.hidden_ND)
    states = dataclasses.replace(states, hidden_ND=np.asarray(factors.hidden_ND))
    splits = _measured(states, np.asarray(factors.output_CD), documents, config.sets, folder / "splits", console)
    found = {"config": dataclasses.asdict(config), **summarize(splits)}
    write_json(folder / "results.json", found | {"splits": splits})
    write_atomically(folder / "table.csv", as_csv(found))
    write_atomically(folder / "table.md", as_markdown(found))
    save_picture(found, folder / "sets.png")
    return found


def load_decoder(config: NextTokenSetsConfig) -> LanguageModel:
    """The model.

    Raises:
      UserError: if it cannot be loaded, is not a decoder, or caps its logits.
    """
    if not config.model:
        raise UserError("config.model is empty: name a run's directory, hf:DIRECTORY or gguf:FILE")
    model = load(config.model, config.checkpoint, dtype=config.dtype)
    shape = model.config.model
    if not isinstance(model, LanguageModel) or shape.architecture != "decoder":
        raise UserError(f"config.model={config.model} is {model.kind}: use a decoder")
    if shape.logit_softcap is not None:
        raise UserError(f"config.model={config.model} caps its logits (logit_softcap): use another model")
    return model


def _measured(
    states: TokenStates,
    output_VD: np.ndarray,
    documents: list[np.ndarray],
    config: SetsConfig,
    folder: Path,
    console: Console,
) -> list[dict[str, Any]]:
    """The results of all splits; those that the folder holds are not computed again."""
    folder.mkdir(exist_ok=True)
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name != "splits"}
    found = []
    with console.progress("measuring splits", config.splits) as advance:
        for seed in range(config.splits):
            path = folder / f"{seed}.json"
            known = read_json_object(path) if path.exists() else {}
            if not is_unchanged(known) or known.get("settings") != settings:
                measured = {"settings": settings, **measure(states, output_VD, documents, config, seed)}
                known = with_digest(json_value(measured))
                write_json(path, known)
            found.append({name: value for name, value in known.items() if name not in ("settings", "digest")})
            advance()
    return found


if __name__ == "__main__":
    run(main, define_flags, __doc__.strip(), resumable=True)
