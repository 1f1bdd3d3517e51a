"""Finding and loading config files: Python files with a function `get_config`."""

import difflib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from lm.configuration import as_nested_dict, from_config_dict, kind_of
from lm.errors import UserError
from lm.overrides import leaves, with_overrides

# Beside this package, in a checkout and in an installation.
PACKAGED = Path(__file__).parents[1] / "configs"


def load_config(file: str, kinds: Sequence[type], overrides: Mapping[str, str] | None = None) -> Any:
    """The config that a file returns, with overrides, converted and checked.

    Args:
      file: as in `find`, with arguments for `get_config` after a colon if it takes any.
      kinds: the dataclasses that it may be.
      overrides: text by dotted name, as in --config.KEY=VALUE.

    Raises:
      UserError: if there is no such file, it fails, its config is of another kind, or a value is invalid.
    """
    path, arguments = _path_and_arguments(file)
    made = _call(path, arguments)
    cls = _choose(made, kinds, path)
    return from_config_dict(cls, with_overrides(cls, as_nested_dict(made), overrides or {}))


def find(name: str) -> Path:
    """The file that a name stands for: a path, or the name of a file in ./configs or of a config that came along.

    Raises:
      UserError: if there is none.
    """
    given = Path(os.path.expanduser(name))  # unlike Path's, it accepts that there is no home
    stem = given.name.removesuffix(".py")
    candidates = [given, given.with_name(f"{stem}.py")]
    if given.parent in (Path(), Path("configs")):
        candidates += [Path("configs", f"{stem}.py"), PACKAGED / f"{stem}.py"]
    for path in candidates:
        if path.is_file() and path.suffix == ".py":
            return path
    if given.exists() and not given.is_dir():
        raise UserError(f"the config file {name} is not a Python file: its name must end with .py")
    known = sorted({path.stem for folder in (Path("configs"), PACKAGED) for path in folder.glob("[a-z]*.py")})
    close = difflib.get_close_matches(stem, known, n=2, cutoff=0.6)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known names: {', '.join(known)}"
    raise UserError(f"there is no config file {name}; {hint}")


def _path_and_arguments(file: str) -> tuple[Path, str | None]:
    if ":" not in file or Path(file).is_file():
        return find(file), None
    name, _, arguments = file.partition(":")
    return find(name), arguments


def _call(path: Path, arguments: str | None) -> Any:
    """What the file's `get_config` returns."""
    try:
        function = _load(path).get_config
        takes = inspect.signature(function).parameters
        if arguments is not None and not takes:
            raise UserError(f"{path} takes no setting: leave out :{arguments}")
        return function() if arguments is None else function(arguments)
    except UserError:
        raise
    except Exception as error:  # a user's code can raise anything
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        place = f", line {lines[-1]}" if lines else ""
        raise UserError(f"the config file {path}{place} failed: {type(error).__name__}: {error}") from error


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"_config_{path.stem}", path)
    assert spec is not None  # as for every name that ends with .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there for the types of their fields
    spec.loader.exec_module(module)
    return module


def _choose(made: Any, kinds: Sequence[type], path: Path) -> type:
    """The dataclass among `kinds` that a config is of."""
    if not kind_of(made) and (isinstance(made, type) or not hasattr(made, "items")):
        raise UserError(f"the config file {path} failed: get_config returned {type(made).__name__}, not a config")
    # By name: an experiment run as a script has its own copy of the class.
    kind, names = kind_of(made), [cls.__name__ for cls in kinds]
    if kind and kind not in names:
        raise UserError(
            f"{path} holds a {kind}, for experiments.{experiment_of(kind)}; this experiment takes a "
            f"{' or '.join(names)}"
        )
    if kind:
        return kinds[names.index(kind)]
    return min(kinds, key=lambda cls: len(set(made) - {name.split(".")[0] for name, _ in leaves(cls)}))


def experiment_of(kind: str) -> str:
    """The experiment that a kind of config is named after: SelfTrainConfig is for self_train."""
    words = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in kind.removesuffix("Config"))
    return words.strip("_")
