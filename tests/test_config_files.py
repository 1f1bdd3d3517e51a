"""Config files are found by path or name, and loaded whatever form their config has."""

import pytest

from lm.config_files import PACKAGED, experiment_of, find, load_config
from lm.errors import UserError
from lm.runs.config import FinetuneConfig, PretrainConfig

KINDS = (PretrainConfig, FinetuneConfig)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(path, body):
    path.parent.mkdir(exist_ok=True)
    imports = "from lm.runs.config import *\nfrom lm.configuration import *\n"
    path.write_text(f"{imports}def get_config():\n    return {body}\n")
    return str(path)


@pytest.mark.parametrize("name", ["quickstart", "quickstart.py", "configs/quickstart.py", "configs/quickstart"])
def test_a_config_that_came_along_is_found_from_everywhere(name):
    assert find(name) == PACKAGED / "quickstart.py"


def test_a_users_own_file_comes_first(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    own = write(tmp_path / "configs" / "quickstart.py", "PretrainConfig(seed=5)")
    for name in ("quickstart", "configs/quickstart.py", own):
        assert load_config(name, KINDS).seed == 5
    write(tmp_path / "home" / "mine.py", "PretrainConfig(seed=6)")
    assert load_config("~/mine.py", KINDS).seed == 6


def test_without_a_home_nothing_fails(monkeypatch):
    monkeypatch.delenv("HOME")
    with pytest.raises(UserError, match="no config file ~nobody_of_this_name"):
        find("~nobody_of_this_name/a.py")


def test_arguments_and_overrides():
    assert load_config("shakespeare_char:gpu", KINDS, {"training.steps": "7"}).training.steps == 7
    with pytest.raises(UserError, match=r"quickstart\.py takes no setting: leave out :gpu"):
        load_config("quickstart:gpu", KINDS)


@pytest.mark.parametrize(
    "body",
    [
        "PretrainConfig(seed=3)",
        "to_config_dict(PretrainConfig(seed=3))",
        "ConfigDict({'seed': 3, 'objective': {}})",
        "{'seed': 3, 'objective': {}}",
    ],
)
def test_every_form_of_config(body, tmp_path):
    config = load_config(write(tmp_path / "mine.py", body), KINDS)
    assert config == PretrainConfig(seed=3)


def test_a_handwritten_config_is_of_the_kind_that_fits(tmp_path):
    config = load_config(write(tmp_path / "mine.py", "{'task': {'classes': [0, 1]}}"), KINDS)
    assert config.task.classes == ("0", "1")


@pytest.mark.parametrize("body", ["to_config_dict(FinetuneConfig())", "FinetuneConfig()"])
def test_another_kind_of_config_is_refused(body, tmp_path):
    path = write(tmp_path / "mine.py", body)
    with pytest.raises(UserError, match=r"FinetuneConfig, for experiments\.finetune; this experiment takes a Pretrain"):
        load_config(path, (PretrainConfig,))


@pytest.mark.parametrize("body", ["None", "3", "[1]", "PretrainConfig", "dict"])
def test_what_is_no_config_is_refused(body, tmp_path):
    with pytest.raises(UserError, match="get_config returned"):
        load_config(write(tmp_path / "mine.py", body), KINDS)


def test_a_failure_names_file_and_line(tmp_path):
    with pytest.raises(UserError, match=r"mine\.py, line 4 failed: ZeroDivisionError"):
        load_config(write(tmp_path / "mine.py", "1 / 0"), KINDS)


def test_experiments_are_named_after_their_config():
    names = [experiment_of(name) for name in ("PretrainConfig", "SelfTrainConfig", "Guo2017Config")]
    assert names == ["pretrain", "self_train", "guo2017"]
