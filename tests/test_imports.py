"""The house: rooms stand in an order, and a room imports only from rooms below it."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]

# From the top down. A room may import from itself and from rooms that come later.
ROOMS = (
    "experiments",
    "lm.sweeps",
    "lm.training",
    "lm.inference",
    "lm.runs",
    "lm.pretrained",
    "lm.objectives",
    "lm.prompting",
    "lm.tasks",
    "lm.decoding",
    "lm.models",
    "lm.modules",
    "lm.data",
    "lm.evaluation",
    "lm.calibration",
    "lm.statistics",
    "lm.command_line",
    "lm.hosts",
    "lm.compilation",
    "lm.config_files",
    "lm.config_help",
    "lm.overrides",
    "lm.configuration",
    "lm.fonts",
    "lm.console",
    "lm.files",
    "lm.locks",
    "lm.writing_systems",
    "lm.types",
    "lm.errors",
)
# What `import lm` offers is found in the rooms when it is asked for.
LAZY = {"lm/__init__.py", "lm/calibration/__init__.py"}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for top in ("lm", "experiments") for path in sorted((ROOT / top).rglob("*.py"))}


def imports_of(path: Path) -> set[str]:
    """The modules of ours that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: write the whole name of what is imported"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found & MODULES.keys()


def room_of(module: str) -> str:
    return module.split(".")[0] if module.startswith("experiments") else ".".join(module.split(".")[:2])


def test_every_module_is_in_a_room():
    assert {room_of(module) for module in MODULES} - {"lm"} == set(ROOMS)


def test_no_import_goes_up():
    upward = [
        f"{module} imports {other}"
        for module, path in MODULES.items()
        if str(path.relative_to(ROOT)) not in LAZY
        for other in imports_of(path) - {"lm"}
        if ROOMS.index(room_of(other)) < ROOMS.index(room_of(module))
    ]
    assert not upward, "\n".join(upward)


def test_no_import_goes_round():
    imports = {
        module: imports_of(path) - {module}
        for module, path in MODULES.items()
        if str(path.relative_to(ROOT)) not in LAZY
    }
    ended: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " imports ".join((*way[way.index(module) :], module))
        if module not in ended:
            for other in sorted(imports.get(module, ())):
                visit(other, (*way, module))
            ended.add(module)

    for module in imports:
        visit(module, ())


def test_test_files_have_distinct_names():
    """pytest takes two files of one name for one module."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
