"""A work directory: everything about one run, and enough to go on from it or to use its model.

config.json  tokenizer.json  checkpoints/  metrics.jsonl  speed.jsonl  tensorboard/  samples.txt
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax

from lm.configuration import differences, from_config_dict
from lm.data.tokenizers import Tokenizer
from lm.errors import UserError
from lm.models.decoder_lm import DecoderLM
from lm.tasks.causal_lm import CausalLM
from lm.training.checkpoints import Checkpoints
from lm.training.config import FREE_TO_CHANGE, PretrainConfig
from lm.training.optimizers import make_optimizer
from lm.training.step import init_state


@dataclasses.dataclass(frozen=True)
class WorkDirectory:
    """The paths of a run."""

    path: Path

    @property
    def config(self) -> Path:
        """The config that the run was started with, JSON."""
        return self.path / "config.json"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer, in the format of the `tokenizers` library."""
        return self.path / "tokenizer.json"

    @property
    def checkpoints(self) -> Path:
        """Orbax checkpoints, a folder a step."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """One JSON object a line; the same bytes for the same config, seed and device count."""
        return self.path / "metrics.jsonl"

    @property
    def speed(self) -> Path:
        """One JSON object a line: what depends on the machine and the moment."""
        return self.path / "speed.jsonl"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def profile(self) -> Path:
        """What `--profile` recorded, for TensorBoard or XProf."""
        return self.path / "profile"

    @property
    def predictions(self) -> Path:
        """Folder of predictions, npz files that `experiments.calibrate` reads."""
        return self.path / "predictions"

    @property
    def calibration(self) -> Path:
        """Folder of calibrators, tables, pictures and the report."""
        return self.path / "calibration"

    @property
    def samples(self) -> Path:
        """What the model wrote when training ended."""
        return self.path / "samples.txt"

    def check(self, config: PretrainConfig) -> None:
        """Checks, writing nothing, that this run can live here.

        Raises:
          UserError: if the directory can't be written, or holds a run with another config.
        """
        nearest = self.path.absolute()
        while not nearest.exists() and nearest != nearest.parent:
            nearest = nearest.parent
        if not nearest.is_dir():
            raise UserError(f"--workdir={self.path}: {nearest} is a file, not a directory")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise UserError(f"--workdir={self.path}: no permission to write in {nearest}")
        if not self.config.exists():
            return
        free = tuple(FREE_TO_CHANGE)
        changed = {
            name: values
            for name, values in differences(_read_json(self.config), config).items()
            if not name.startswith(free)
        }
        if changed:
            listed = "; ".join(f"config.{name} was {old!r}, is {new!r}" for name, (old, new) in changed.items())
            raise UserError(f"{self.path} holds a run with another config ({listed}): use another --workdir")

    def claim(self, config: PretrainConfig, tokenizer: Tokenizer) -> None:
        """Makes the directory, if it isn't there yet, with the config and the tokenizer.

        Raises:
          UserError: if it can't be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not self.tokenizer.exists():
                tokenizer.save(self.tokenizer)
            # Last: a directory with a config is a whole one.
            write_atomically(self.config, json.dumps(dataclasses.asdict(config), indent=2) + "\n")
        except OSError as error:
            raise UserError(f"--workdir={self.path} cannot be written: {error.strerror}") from error

    def load_config(self) -> PretrainConfig:
        """The config of the run that lives here.

        Raises:
          UserError: if none does.
        """
        if not self.config.exists():
            raise UserError(f"--workdir={self.path} holds no run: there is no {self.config.name} in it")
        return from_config_dict(PretrainConfig, _read_json(self.config), prefix=str(self.config))

    def load_model(self, which: str = "best") -> tuple[DecoderLM, Any, Tokenizer, int]:
        """The trained model.

        Args:
          which: the "best" checkpoint by validation loss, the "last", or a step.

        Returns:
          The model, its parameters (averaged, if the run kept an average), the tokenizer, and the checkpoint's step.

        Raises:
          UserError: if there is no such checkpoint.
        """
        config = self.load_config()
        tokenizer = Tokenizer.load(self.tokenizer)
        model_config = with_vocabulary(config, tokenizer).model
        checkpoints = Checkpoints(self.checkpoints) if self.checkpoints.exists() else None
        steps = checkpoints.steps if checkpoints else []
        if not steps:
            raise UserError(f"--workdir={self.path} holds no checkpoint yet: train first")
        step = {"best": checkpoints.best_step, "last": steps[-1]}.get(which) or steps[-1]
        if which not in ("best", "last"):
            if not which.isdigit() or int(which) not in steps:
                known = ", ".join(str(step) for step in steps)
                raise UserError(f"--checkpoint={which} is not there: choose best, last or one of {known}")
            step = int(which)
        model = DecoderLM(model_config)
        optimizer = make_optimizer(config.optimizer, config.training.steps)
        like = jax.eval_shape(
            lambda key: init_state(CausalLM(model), optimizer, config.optimizer, key), jax.random.key(0)
        )
        one_device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one_device), like)
        try:
            state, _ = checkpoints.restore(like, step)
        except Exception as error:  # whatever a broken file makes the readers below raise
            reason = str(error).splitlines()[0][:200]
            others = ", ".join(str(other) for other in steps if other != step) or "none"
            raise UserError(
                f"checkpoint {step} in {self.checkpoints} cannot be read ({reason}); others, for --checkpoint: {others}"
            ) from error
        checkpoints.close()
        return model, state.evaluation_params, tokenizer, step


def with_vocabulary(config: PretrainConfig, tokenizer: Tokenizer) -> PretrainConfig:
    """The config with `model.vocab_size` known.

    Raises:
      UserError: if it was given and is too small for the tokenizer.
    """
    size = config.model.vocab_size or tokenizer.vocab_size
    if size < tokenizer.vocab_size:
        raise UserError(f"config.model.vocab_size={size} is smaller than the tokenizer's {tokenizer.vocab_size}")
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=size))


def write_atomically(path: Path, text: str) -> None:
    """Writes a file so that at no moment a part of it can be seen."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
