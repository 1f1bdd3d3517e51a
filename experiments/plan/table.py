"""Plans as tables for the terminal."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from experiments.plan.planning import Plan
from lm.training.hlo import Collective

GB = 1e9


def memory_table(plans: Sequence[Plan]) -> Table:
    """What a device holds, one line per plan, in GB."""
    table = Table(box=SIMPLE_HEAD)
    table.add_column("memory", overflow="fold")
    for name in ("mesh", "parameters", "optimizer", "needed", "of", "fits"):
        table.add_column(name, justify="right", no_wrap=True)
    for plan in plans:
        sizes = [f"{size / GB:.2f}" for size in (plan.parameter_bytes, plan.optimizer_bytes, plan.needed_bytes)]
        sizes[2] = ("" if plan.compiled else "~") + sizes[2]
        of = f"{plan.target.chip.memory / GB:.1f}" if plan.target.chip else ""
        table.add_row(name_of(plan), shown_mesh(plan), *sizes, of, {None: "", True: "yes", False: "no"}[plan.fits])
    return table


def time_table(plans: Sequence[Plan]) -> Table:
    """Bounds on a step, one line per plan with a chip, in seconds; MFU overlapped and serial."""
    table = Table(box=SIMPLE_HEAD)
    table.add_column("time", overflow="fold")
    for name in ("compute", "memory", "network", "MFU at most", "limited by"):
        table.add_column(name, justify="right", no_wrap=True)
    for plan in plans:
        if (bounds := plan.roofline) is not None:
            parts = [f"{part:.3g}" for part in (bounds.compute, bounds.memory, bounds.network)]
            table.add_row(name_of(plan), *parts, " / ".join(f"{share:.0%}" for share in bounds.mfu), bounds.limit)
    return table


def name_of(plan: Plan) -> str:
    """Config and target."""
    return f"{plan.config_name} on {plan.target.name}"


def collectives_table(collectives: Sequence[Collective], most: int) -> Table:
    """The communication of one plan, the most first."""
    table = Table(box=SIMPLE_HEAD)
    table.add_column("collective")
    for name in ("array", "devices", "times", "GB sent"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in sorted(collectives, key=lambda each: -each.sent)[:most]:
        table.add_row(*collective_cells(each))
    return table


def collective_cells(each: Collective) -> tuple[str, str, str, str, str]:
    """Kind, array, devices that take part, times in a step, and GB that a device sends."""
    kind = "reduce-scatter" if each.sliced else each.kind
    shape = f"{each.dtype}[{', '.join(map(str, each.shape))}]"
    return kind, shape, str(each.group), f"{each.count:,}", f"{each.sent / GB:,.2f}"


def summary(plan: Plan) -> str:
    """A few lines about one plan."""
    done, wanted = plan.dot_flops * plan.target.devices, plan.model_flops
    lines = [
        f"{name_of(plan)}: a step is {wanted / 1e15:.3g} PFLOP of the model, and {done / wanted:.2f} times that in "
        f"matrix products as partitioned. Each device sends {plan.sent / GB:,.1f} GB and holds "
        f"{plan.batch_bytes / GB:.2g} GB of the batch"
    ]
    if plan.settings:
        lines.append("  " + " ".join(f"--config.{key}={value}" for key, value in plan.settings.items()))
    if plan.unknown_loops:
        lines.append(f"  loops of unknown length, counted once: {', '.join(plan.unknown_loops)}")
    if plan.compiled is not None:
        lines.append(f"  {compiler_said(plan)}")
    return "\n".join(lines)


def compiler_said(plan: Plan) -> str:
    """What the compiler found, in a line."""
    if plan.compiled is None:
        return "not compiled"
    if not plan.compiled.fits:
        return f"the compiler needs {plan.compiled.peak_bytes / GB:.3g} GB: does not fit"
    fused = plan.compiled.fused_attention
    attention = f"{fused:,} calls of fused attention" if fused else "no fused attention"
    sent = "" if plan.compiled.sent is None else f", {plan.compiled.sent / GB:.3g} GB sent"
    return f"compiled in {plan.compiled.seconds:.0f} s: {plan.compiled.peak_bytes / GB:.3g} GB{sent}, {attention}"


def shown_mesh(plan: Plan) -> str:
    """The mesh as data x fsdp x tensor."""
    return " x ".join(map(str, plan.mesh))
