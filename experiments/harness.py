"""Evaluates a model with lm-evaluation-harness, on any of its tasks.

python -m experiments.harness --model_args path=runs/mine --tasks hellaswag,arc_easy --output_path results --log_samples

All flags are the harness's own (`--help`), and so are its tables and logs; `--model calibrated_lm` and
`--batch_size auto` go without saying. model_args are path, as in lm.load, and optionally checkpoint, calibrator, dtype,
max_length and max_gen_toks. Tasks of your own: `--include_path DIRECTORY`, a folder of YAML files.
experiments.read_log turns the logged samples into predictions for experiments.calibrate. Needs
`pip install -e '.[harness]'`.
"""

import sys
from collections.abc import Sequence

from lm.command_line import exit_with
from lm.compilation import keep_compiled_programs

_DEFAULTS = {"--model": ("-M", "calibrated_lm"), "--batch_size": ("-b", "auto")}
_COMMANDS = ("run", "ls", "validate")


def main() -> None:
    """Runs the harness's command line with our model among its models."""
    from lm.inference.harness import run_command_line  # takes seconds, and fails without the extra

    keep_compiled_programs()
    sys.argv = ["experiments.harness", *with_defaults(sys.argv[1:])]
    run_command_line()


def with_defaults(arguments: Sequence[str]) -> list[str]:
    """The harness's arguments, with its command and our defaults where they are left out."""
    command, rest = (arguments[0], arguments[1:]) if arguments and arguments[0] in _COMMANDS else ("run", arguments)
    if command != "run":
        return [command, *rest]
    given = {argument.partition("=")[0] for argument in rest}
    added = [f"{name}={value}" for name, (short, value) in _DEFAULTS.items() if not {name, short} & given]
    return [command, *added, *rest]


if __name__ == "__main__":
    exit_with(main)
