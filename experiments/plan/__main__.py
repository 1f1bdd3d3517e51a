"""Plans a pretraining run before a machine is rented: memory, communication and time of its training step.

python -m experiments.plan --config=llama_1b --target=tpu:v5e:4x4 --config.partitioning.fsdp=16
python -m experiments.plan --config=llama_1b,gpt2_124m --target=tpu:v6e:8x8,cuda:h100:8 --workdir=runs/plan
python -m experiments.plan --config=llama3_8b --target=tpu:v5p:4x4x4 --search --compile

No accelerator, text or tokenizer is needed. The times are bounds, not forecasts: docs/accelerators.md has what they
assume.
"""

import dataclasses
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments.plan.page import plan_page
from experiments.plan.planning import Plan, make_plan, prepare_devices, with_compiler
from experiments.plan.search import search
from experiments.plan.table import collectives_table, memory_table, summary, time_table
from lm.command_line import define_config_files, run
from lm.console import Console
from lm.errors import UserError
from lm.files import check_writable, write_atomically, write_json
from lm.runs.config import PretrainConfig
from lm.training.chips import Target, parse_target
from lm.training.compile_only import check_compiler
from lm.training.partitioning import mesh_shape
from lm.training.roofline import ASSUMPTIONS

_SHOWN = 8  # collectives of each plan


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command line."""
    define_config_files(values, PretrainConfig)
    text = "Devices, with commas between several: cpu:64, tpu:v5p:4x4x4 (a topology) or cuda:h100:8."
    flags.DEFINE_list("target", [], text, flag_values=values)
    text = "Also compile for the target, which takes minutes and the extra plan-tpu or plan-cuda: exact memory."
    flags.DEFINE_bool("compile", False, text, flag_values=values)
    text = "Try meshes, micro-batches, rematerialization and loss chunks, and name the fastest that fits."
    flags.DEFINE_bool("search", False, text, flag_values=values)
    flags.DEFINE_string("workdir", None, "Directory for plan.html and plan.json.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Plans every config on every target and prints the table."""
    if not values.target:
        raise UserError("--target is missing: name devices, such as --target=tpu:v5p:4x4x4")
    targets = [parse_target(text) for text in values.target]
    if values.compile:
        for target in targets:
            check_compiler(target)
    if not values.search:
        for config in values.config.values():
            for target in targets:
                mesh_shape(config.partitioning, target.devices)
    directory = Path(values.workdir).expanduser() if values.workdir else None
    if directory is not None:
        check_writable(directory, f"--workdir={directory}")
    prepare_devices(max(target.devices for target in targets))
    console = Console(stderr=True)
    plans = list(planned(values.config, targets, console, searching=values.search, compiling=values.compile))
    report(plans, Console(), directory)


def planned(
    configs: Mapping[str, PretrainConfig],
    targets: Sequence[Target],
    console: Console,
    *,
    searching: bool = False,
    compiling: bool = False,
) -> Iterator[Plan]:
    """The plan of each config on each target; with `searching`, that of the best settings.

    Raises:
      UserError: if a config doesn't fit a target.
    """
    for name, config in configs.items():
        for target in targets:
            console.print(f"planning {name} on {target.name}")
            if searching:
                found = search(name, config, target, console)
                yield compiled_first(found, console) if compiling else found[0]
            else:
                plan = make_plan(name, config, target)
                yield with_compiler(plan) if compiling else plan


def compiled_first(found: Sequence[Plan], console: Console) -> Plan:
    """The first plan that fits by the compiler's figure.

    Raises:
      UserError: if none does.
    """
    for plan in found:
        if not plan.fits:
            break
        compiled = with_compiler(plan)
        if compiled.fits:
            return compiled
        console.print(summary(compiled))
    raise UserError(
        "--search: nothing that was found fits by the compiler's figures: take more chips or a smaller model"
    )


def report(plans: Sequence[Plan], console: Console, directory: Path | None) -> None:
    """Prints the plans, and writes plan.html and plan.json."""
    for plan in plans:
        console.print(summary(plan))
        if plan.collectives:
            console.print(collectives_table(plan.collectives, _SHOWN))
    console.print(memory_table(plans))
    if any(plan.roofline for plan in plans):
        console.print(time_table(plans))
    console.print("Bounds, not forecasts; memory after ~ is an estimate, which --compile replaces by the compiler's.")
    if directory is None:
        return
    directory.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", "-m", "experiments.plan", *sys.argv[1:]])
    write_atomically(directory / "plan.html", plan_page(plans, command))
    write_json(directory / "plan.json", {"assumptions": ASSUMPTIONS, "plans": [_as_json(plan) for plan in plans]})
    console.print(f"plan.html and plan.json are in {directory}")


def _as_json(plan: Plan) -> dict[str, Any]:
    """Everything about a plan, with what follows from it."""
    found: dict[str, Any] = {"needed_bytes": plan.needed_bytes, "fits": plan.fits, "sent_bytes": plan.sent}
    if plan.roofline is not None:
        found |= {"mfu": plan.roofline.mfu, "limited_by": plan.roofline.limit}
    return dataclasses.asdict(plan) | found


if __name__ == "__main__":
    run(main, define_flags, __doc__.strip())
