"""Reading a run back: what was changed since it was trained is refused in one line, whatever was done to it."""

import json
import shutil
from pathlib import Path

import pytest

from lm.errors import UserError
from lm.runs.trained_run import load_run
from lm.runs.work_directory import WorkDirectory
from tests.tiny import files_below, run, tiny_config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    config = tiny_config(folder, prompts=(), steps=2, evaluate_every=1, checkpoint_every=1)
    run(config, folder / "run [1] 東")
    return config, folder / "run [1] 東"


@pytest.fixture
def copy(trained, tmp_path):
    return shutil.copytree(trained[1], tmp_path / "copy")


def swap_two_ids(directory):
    values = json.loads(directory.tokenizer.read_text())
    vocabulary = values["model"]["vocab"]
    vocabulary["a"], vocabulary["e"] = vocabulary["e"], vocabulary["a"]
    directory.tokenizer.write_text(json.dumps(values))


def halve_the_heads(directory):
    values = json.loads(directory.config.read_text())
    values["model"]["heads"] = 1
    directory.config.write_text(json.dumps(values))


def test_a_run_in_a_directory_of_any_name_is_read(trained):
    before = files_below(trained[1])
    for which in ("best", "last", "1"):
        load_run(WorkDirectory(trained[1]), which)
    assert files_below(trained[1]) == before


@pytest.mark.parametrize(
    ("change", "told"),
    [(swap_two_ids, r"tokenizer\.json"), (halve_the_heads, r"config\.model\.heads was 2, is 1")],
)
def test_a_model_made_of_other_files_is_refused(change, told, copy, trained):
    change(WorkDirectory(copy))
    for which in ("best", "last", "1"):
        with pytest.raises(UserError, match=told):
            load_run(WorkDirectory(copy), which)
    with pytest.raises(UserError, match=r"tokenizer\.json|heads"):
        run(trained[0], copy)


@pytest.mark.parametrize(
    "content", ["[1]", "5", "{}", "null", '"x"', "{", "\x00", '{"model": []}', '{"model": {"layers": "x"}}']
)
def test_a_config_of_another_form_is_refused(content, copy):
    (copy / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json|copy"):
        load_run(WorkDirectory(copy))


@pytest.mark.parametrize("content", ["5", "{}", "[]", "[1]", '["a", "a"]', "null", "[[]]"])
def test_classes_of_another_form_are_refused(content, copy):
    (copy / "classes.json").write_text(content)
    with pytest.raises(UserError, match=r"classes\.json must|classes\.json repeats"):
        WorkDirectory(copy).load_classes()


def test_names_that_are_too_long_are_refused(trained):
    directory = WorkDirectory(Path("x" * 300))
    for use in (lambda: directory.check(trained[0]), directory.load_config, directory.load_classes):
        with pytest.raises(UserError, match="File name too long"):
            use()


def test_a_tilde_is_the_home_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert WorkDirectory(Path("~/runs/a")).path == tmp_path / "runs" / "a"
    assert WorkDirectory(Path("a~b")).path == Path("a~b")
    with pytest.raises(UserError, match="~nobody-of-that-name"):
        WorkDirectory(Path("~nobody-of-that-name/a"))


def test_a_damaged_checkpoint_is_named_with_the_others(copy):
    for data in (copy / "checkpoints/2/averaged_params").rglob("d/*"):
        data.write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"checkpoint 2 in .* cannot be read .*other values for --checkpoint: 1$"):
        load_run(WorkDirectory(copy), "last")
    load_run(WorkDirectory(copy), "1")
