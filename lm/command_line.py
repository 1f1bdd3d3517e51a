"""The command line that all experiments share: flags, overrides, one clear line for each mistake.

Exit statuses: 0 done; 1 training failed; 2 a mistake in what the user gave, or a file that cannot be read or written;
128 + n stopped by signal n.
"""

import contextlib
import os
import re
import signal
import sys
import textwrap
from collections.abc import Callable, Collection, Sequence
from typing import Any, NoReturn

from absl import flags

from lm.compilation import keep_compiled_programs
from lm.config_files import load_config
from lm.config_help import WIDTH, describe
from lm.configuration import from_config_dict
from lm.console import printable
from lm.errors import TrainingError, UserError
from lm.hosts import joined
from lm.overrides import with_overrides

_LONGEST_MESSAGE = 1500  # characters
_OUT_OF_MEMORY = (
    "out of memory: lower config.training.batch_size, raise config.training.micro_batches, or use a smaller model"
)

_ALONE = "this job runs in one process; pretrain, finetune, evaluate and self_train can share one among hosts"


def run(
    main: Callable[[flags.FlagValues], int | None],
    define: Callable[[flags.FlagValues], None],
    usage: str,
    resumable: bool = False,
) -> None:
    """Parses the command line, calls `main` with the flags, and exits with its status.

    Args:
      main: the experiment; returns the exit status, None meaning 0.
      define: defines the experiment's flags.
      usage: the text that `--help` begins with.
      resumable: whether the same command continues after Ctrl-C, which is then said.
    """

    def parse_and_run() -> int | None:
        values = parse(define, sys.argv, usage)
        keep_compiled_programs()
        try:
            with joined(values, explained, say_error):
                return main(values)
        except KeyboardInterrupt:
            if not resumable:
                raise
            print("stopped; run the same command to continue", file=sys.stderr, flush=True)
            return 128 + signal.SIGINT

    exit_with(parse_and_run)


def exit_with(work: Callable[[], int | None]) -> NoReturn:
    """Calls a function and exits with the status that it returns, None meaning 0, or that of its error.

    Errors that are not known to come from outside keep their traceback.
    """
    print_whatever_the_encoding()
    try:
        status = work() or 0
        flush()
        sys.exit(status)
    except BrokenPipeError:  # as in `... | head`
        _discard(sys.stdout)
        _discard(sys.stderr)
        sys.exit(128 + signal.SIGPIPE)
    except (Exception, KeyboardInterrupt) as error:
        known = explained(error)
        if known is None:
            raise
        fail(*known)


def explained(error: BaseException) -> tuple[str, int] | None:
    """The line and the exit status of an error; None for one that is not known to come from outside."""
    match error:
        case UserError():
            return str(error), 2
        case TrainingError():
            return str(error), 1
        case KeyboardInterrupt():
            return "stopped", 128 + signal.SIGINT
        case OSError():
            return _describe(error), 2
        case MemoryError():
            return _OUT_OF_MEMORY, 1
    if "RESOURCE_EXHAUSTED" in str(error):  # JAX's error, whose class would take seconds to import
        return f"{_OUT_OF_MEMORY} ({str(error).splitlines()[0]})", 1
    return None


def parse(define: Callable[[flags.FlagValues], None], argv: Sequence[str], usage: str) -> flags.FlagValues:
    """The parsed flags; `config`, if it is defined, is the config as a dataclass.

    Raises:
      UserError: for an unknown flag or config key, a value of the wrong type, or a config file that fails.
    """
    for argument in argv:
        if not argument.isascii() and any("\udc80" <= letter <= "\udcff" for letter in argument):
            raise UserError(f"{argument!r} is not UTF-8: give arguments in UTF-8")
    values = flags.FlagValues()
    define(values)
    if any(argument in ("--help", "-help", "-h") for argument in argv[1:]):
        print(f"{usage}\n\n{_help(values, argv)}")
        flush()
        sys.exit(0)
    argv, overrides = _split_overrides(argv)
    try:
        rest = values(argv)
    except flags.UnrecognizedFlagError as error:
        if error.flagname in ("distributed", "coordinator", "processes", "process_id"):
            raise UserError(f"--{error.flagname}: {_ALONE}") from error
        raise UserError(" ".join(str(error).split())) from error
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from error
    if len(rest) > 1:
        raise UserError(
            f"unexpected argument {rest[1]!r}: flags are written --name=value, values with spaces in quotes"
        )
    if (config := _config_flag(values)) is not None:
        config.value = config.load(overrides)
    elif overrides:
        raise UserError(f"--config.{next(iter(overrides))}: there is no config here")
    return values


class _ConfigFlag(flags.Flag):
    """A flag whose value becomes a config."""

    def __init__(self, help_text: str, *kinds: type, from_file: bool):
        super().__init__(flags.ArgumentParser(), None, "config", None, help_text)
        self.kinds, self._from_file = kinds, from_file
        self.overridden: Collection[str] = ()

    def load(self, overrides: dict[str, str]) -> Any:
        """The config with overrides."""
        self.overridden = overrides.keys()
        if not self._from_file:
            if self.value is not None:
                raise UserError("--config takes no file here: write --config.KEY=VALUE")
            (cls,) = self.kinds
            return from_config_dict(cls, with_overrides(cls, {}, overrides))
        if not self.value:
            raise UserError("--config is missing: name a config file, such as --config=configs/quickstart.py")
        return load_config(self.value, self.kinds, overrides)


def define_config_file(values: flags.FlagValues, *kinds: type) -> None:
    """Defines `--config=FILE.py[:arguments]`, for a config of these kinds, and `--config.KEY=VALUE`."""
    text = "Config: FILE.py, FILE.py:ARGUMENTS or a name such as quickstart; --config.KEY=VALUE changes one value."
    flags.DEFINE_flag(_ConfigFlag(text, *kinds, from_file=True), values)


class _ConfigsFlag(_ConfigFlag):
    """A flag whose value becomes a dict of configs by name."""

    def load(self, overrides: dict[str, str]) -> dict[str, Any]:
        """The configs, all with the same overrides."""
        names = [name for name in (self.value or "").split(",") if name]
        if not names:
            raise UserError("--config is missing: name config files, such as --config=llama_1b,gpt2_124m")
        return {name: load_config(name, self.kinds, overrides) for name in names}


def define_config_files(values: flags.FlagValues, *kinds: type) -> None:
    """Defines `--config=FILE[,FILE...]` for configs of these kinds; `--config.KEY=VALUE` changes all of them."""
    text = "Configs: files or names with commas between them; --config.KEY=VALUE changes one value of each."
    flags.DEFINE_flag(_ConfigsFlag(text, *kinds, from_file=True), values)


def define_config(values: flags.FlagValues, kind: type) -> None:
    """Defines `--config.KEY=VALUE` for the keys of a dataclass with defaults."""
    flags.DEFINE_flag(_ConfigFlag("--config.KEY=VALUE changes one value.", kind, from_file=False), values)


def overridden(values: flags.FlagValues) -> Collection[str]:
    """The keys of the config that the command line sets with --config.KEY=VALUE."""
    flag = _config_flag(values)
    return () if flag is None else flag.overridden


def _config_flag(values: flags.FlagValues) -> _ConfigFlag | None:
    flag = values["config"] if "config" in values else None  # noqa: SIM401  # it has no `get`
    return flag if isinstance(flag, _ConfigFlag) else None


def _split_overrides(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The arguments without --config.KEY=VALUE, and the values by key; the last one counts."""
    rest, overrides, place = [], {}, 0
    while place < len(argv):
        match = re.fullmatch(r"--?config\.([^=]*)(=.*)?", argv[place], re.DOTALL)
        place += 1
        if not match:
            rest.append(argv[place - 1])
        elif match[2]:
            overrides[match[1]] = match[2][1:]
        elif place < len(argv) and not argv[place].startswith("-"):
            overrides[match[1]] = argv[place]
            place += 1
        else:
            overrides[match[1]] = "true"
    return rest, overrides


def _help(values: flags.FlagValues, argv: Sequence[str]) -> str:
    lines = ["Flags:"]
    for name in sorted(values):
        flag = values[name]
        default = "" if flag.default in (None, False) else f" (default: {flag.default})"
        text = " ".join(f"--{name}: {flag.help}{default}".split())
        lines += textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent=" " * 6)
    if (config := _config_flag(values)) is not None:
        config.value = next((each.removeprefix("--config=") for each in argv if each.startswith("--config=")), None)
        chosen = config.load({}) if config.value else None
        if isinstance(chosen, dict):
            chosen = next(iter(chosen.values()))
        lines += ["", describe(config.kinds[0] if chosen is None else type(chosen), chosen)]
    return "\n".join(lines)


def print_whatever_the_encoding() -> None:
    """Makes standard output and error replace what their encoding lacks by escapes such as \\u4e1c, not fail."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def flush() -> None:
    """Flushes standard output, so that a full disk is noticed while it can be reported.

    Raises:
      OSError: if it cannot be written.
    """
    if sys.stdout is not None:
        sys.stdout.flush()


def _describe(error: OSError) -> str:
    reason = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {reason}" if error.filename else reason


def fail(message: str, status: int) -> NoReturn:
    """Prints one line, whatever names and values from files the message contains, and exits."""
    say_error(message)
    sys.exit(status)


def say_error(message: str) -> None:
    """Prints one line, whatever names and values from files the message contains."""
    line = printable(message, keep="")
    if len(line) > _LONGEST_MESSAGE:
        line = f"{line[: _LONGEST_MESSAGE * 2 // 3]} ... {line[-_LONGEST_MESSAGE // 3 :]}"
    try:
        flush()
    except OSError:
        _discard(sys.stdout)
    try:
        print(f"error: {line}", file=sys.stderr, flush=True)
    except OSError:
        _discard(sys.stderr)


def _discard(stream: Any) -> None:
    """Sends what a stream still holds to nowhere; the interpreter would try, and complain, once more at its end."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # not a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
