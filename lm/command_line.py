"""The command line that all experiments share: flags, overrides, one clear line for each mistake.

Exit statuses: 0 done; 1 training failed; 2 a mistake in what the user gave; 128 + n stopped by signal n.
"""

import difflib
import re
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from lm.compilation import keep_compiled_programs
from lm.configuration import flatten
from lm.console import printable
from lm.errors import TrainingError, UserError

_LONGEST_MESSAGE = 1500  # characters


def run(main: Callable[[flags.FlagValues], int | None], define: Callable[[flags.FlagValues], None], usage: str) -> None:
    """Parses the command line, calls `main` with the flags, and exits with its status.

    Args:
      main: the experiment; returns the exit status, None meaning 0.
      define: defines the experiment's flags.
      usage: the text that `--help` begins with.
    """
    try:
        values = parse(define, sys.argv, usage)
        keep_compiled_programs()
        sys.exit(main(values) or 0)
    except UserError as error:
        _fail(str(error), 2)
    except TrainingError as error:
        _fail(str(error), 1)


def parse(define: Callable[[flags.FlagValues], None], argv: Sequence[str], usage: str) -> flags.FlagValues:
    """The parsed flags.

    Raises:
      UserError: for an unknown flag or config key, a value of the wrong type, or a config file that fails.
    """
    if any(argument in ("--help", "-help", "-h") for argument in argv[1:]):
        print(f"{usage}\n\nFlags:\n{_help(define)}")
        sys.exit(0)
    values = flags.FlagValues()
    known_argv, sys.argv = sys.argv, list(argv)  # config_flags looks for overrides in sys.argv
    try:
        define(values)
        rest = values(list(argv))
        config = values["config"].value if "config" in values else None
        hasattr(config, "keys")  # ml_collections reports a missing file only when the config is used
    except UserError:
        raise
    except Exception as error:  # absl and ml_collections raise many kinds; each becomes one line
        raise UserError(_explain(error, define, argv)) from error
    finally:
        sys.argv = known_argv
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}: flags are written --name=value")
    if config is None and "config" in values:
        raise UserError("--config is missing: name a config file, such as --config=configs/quickstart.py")
    return values


def overridden(values: flags.FlagValues) -> Collection[str]:
    """The keys of the config that the command line sets with --config.KEY=VALUE."""
    return config_flags.get_override_values(values["config"]).keys()


def define_config_file(values: flags.FlagValues, default: str | None = None) -> None:
    """Defines `--config=FILE.py[:arguments]` and `--config.KEY=VALUE`."""
    config_flags.DEFINE_config_file(
        "config", default, "Config file, FILE.py[:arguments]; --config.KEY=VALUE changes one value.", flag_values=values
    )


def define_config(values: flags.FlagValues, config: ConfigDict) -> None:
    """Defines `--config.KEY=VALUE` for the keys of `config`."""
    config_flags.DEFINE_config_dict("config", config, "--config.KEY=VALUE changes one value.", flag_values=values)


def _explain(error: Exception, define: Callable[[flags.FlagValues], None], argv: Sequence[str]) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    file = next((a.split("=", 1)[1] for a in reversed(argv) if a.startswith("--config=")), None)
    if isinstance(error, AttributeError | KeyError) and (unknown := _unknown_key(define, argv)):
        return unknown
    if isinstance(error, OSError | ImportError | AttributeError | KeyError | TypeError | SyntaxError) and file:
        inner = error.__cause__ or error
        if "No such file" in str(error):
            return f"there is no config file {file.split(':')[0]}"
        return f"the config file {file} failed: {_one_line(inner)}"
    return _one_line(error)


def _unknown_key(define: Callable[[flags.FlagValues], None], argv: Sequence[str]) -> str | None:
    without_overrides = [argument for argument in argv if not re.match(r"--?config\.", argument)]
    if without_overrides == list(argv):
        return None
    values: Any = parse(define, without_overrides, "")
    leaves = flatten(values["config"].value.to_dict())
    groups = {name.rsplit(".", 1)[0] for name in leaves if "." in name}
    for argument in argv[1:]:
        match = re.match(r"--?config\.([\w.]+)", argument)
        if match and match[1] not in leaves and match[1] not in groups:
            close = difflib.get_close_matches(match[1], leaves, n=3, cutoff=0.5)
            tail = match[1].rsplit(".", 1)[-1]
            close += [name for name in leaves if name.rsplit(".", 1)[-1] == tail and name not in close]
            hint = f"; did you mean {' or '.join('config.' + name for name in close)}?" if close else ""
            return f"config.{match[1]} is not a known config key{hint}"
    return None


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, flags.Error) else f"{type(error).__name__}: {text}"


def _help(define: Callable[[flags.FlagValues], None]) -> str:
    values, lines = flags.FlagValues(), []
    define(values)
    for name in sorted(values):
        flag = values[name]
        default = "" if flag.default in (None, False) or name == "config" else f" (default: {flag.default})"
        lines.append(f"  --{name}: {flag.help}{default}")
    return "\n".join(lines)


def _fail(message: str, status: int) -> None:
    """Prints one line, whatever names and values from files the message contains, and exits."""
    line = printable(message, keep="")
    if len(line) > _LONGEST_MESSAGE:
        line = f"{line[: _LONGEST_MESSAGE * 2 // 3]} ... {line[-_LONGEST_MESSAGE // 3 :]}"
    print(f"error: {line}", file=sys.stderr)
    sys.exit(status)
