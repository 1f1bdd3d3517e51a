"""Planning a run: figures of a small one, the search, the page, and mistakes as one line."""

import dataclasses
import importlib.util
import json
import re

import pytest

from experiments.plan import __main__ as experiment
from experiments.plan import search as searching
from experiments.plan.page import plan_page
from experiments.plan.planning import Plan, make_plan
from experiments.plan.search import search
from lm.console import QUIET
from lm.data.config import DataConfig
from lm.errors import UserError
from lm.modules.config import ModelConfig
from lm.runs.config import PartitioningConfig, PretrainConfig, TrainingConfig
from lm.training.chips import parse_target
from lm.training.compile_only import Compiled
from lm.training.hlo import Collective
from lm.training.roofline import Roofline
from tests.tiny import command_line

CONFIG = PretrainConfig(
    model=ModelConfig(vocab_size=512, layers=2, width=64, heads=4, max_length=64, scan_layers=True, dtype="bfloat16"),
    data=DataConfig(source="text:missing/*.txt"),
    training=TrainingConfig(steps=10, batch_size=16),
    partitioning=PartitioningConfig(fsdp=8),
)
TARGET = parse_target("tpu:v5e:2x4")


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan("small", CONFIG, TARGET)


def test_plan_counts_what_a_device_holds_and_sends(plan):
    divided, whole = 512 * 64 + 2 * 12 * 64**2, 64 * 64 + 5 * 64  # matrices; positions and norms
    assert plan.parameter_bytes == 4 * (divided / 8 + whole)
    assert plan.optimizer_bytes == pytest.approx(2 * plan.parameter_bytes, rel=0.01)  # two moments
    assert plan.batch_bytes == 5 * 4 * 16 * 64 / 8
    assert plan.dot_flops * 8 == pytest.approx(plan.model_flops, rel=0.02)
    assert plan.sent == sum(each.sent for each in plan.collectives) > plan.parameter_bytes
    assert plan.fits
    assert plan.needed_bytes > plan.parameter_bytes + plan.optimizer_bytes


def test_report_has_tables_and_a_page_of_its_own(plan, tmp_path, capsys):
    compiled = Compiled(20 * 10**9, False, 1.0, {}, None)
    other = dataclasses.replace(plan, config_name="<b>other", settings={"partitioning.fsdp": 8}, compiled=compiled)
    experiment.report([plan, other], experiment.Console(width=200), tmp_path / "plan")
    text = capsys.readouterr().out
    assert re.search(r"small on tpu:v5e:2x4 +1 x 8 x 1 .* yes", text)
    assert re.search(r"<b>other on tpu:v5e:2x4 .* 20\.00 +\d+\.\d +no", text)
    page = (tmp_path / "plan" / "plan.html").read_text()
    assert "&lt;b&gt;other" in page
    assert "<b>other" not in page
    assert "http" not in re.sub(r"http-equiv", "", page)
    assert page.count("<rect") > 10
    assert json.loads((tmp_path / "plan" / "plan.json").read_text())["plans"][0]["model_flops"] == plan.model_flops


def test_cpus_have_no_times(plan):
    page = plan_page([dataclasses.replace(plan, target=parse_target("cpu:8"), roofline=None)], "command")
    assert "no peak to compare with" in page


def scripted(monkeypatch, memory: dict[str, float], slow: dict[str, float]) -> list[dict]:
    """Lets plans need memory and time by formula; returns the settings that are tried."""
    tried = []

    def plan_of(name, config, target, settings):
        tried.append(dict(settings))
        if settings["partitioning.fsdp"] * settings["partitioning.tensor"] > 8:
            raise UserError("too many devices")
        needed = memory["whole"] / settings["partitioning.fsdp"] / settings["training.micro_batches"]
        seconds = settings["training.micro_batches"] * slow["micro_batch"]
        seconds *= slow[settings["model.rematerialize"]] * settings["partitioning.tensor"]
        sent = (Collective("all-gather", "f32", (1,), 4, 1, 8),)
        bounds = Roofline(seconds, 0.0, 0.0, 1.0)
        return Plan(
            *(name, target, (1, 8, 1), settings, config, int(needed), 0, 0, 0, 1, 1, sent, (), bounds, None, 0.0)
        )

    monkeypatch.setattr(searching, "make_plan", plan_of)
    return tried


SLOW = {"micro_batch": 1.0, "none": 1.0, "dots": 2.0, "full": 3.0}


def test_search_takes_the_fastest_that_fits(monkeypatch):
    tried = scripted(monkeypatch, {"whole": 300e9}, SLOW)
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, rematerialize="full"))
    found = search("small", config, TARGET, QUIET)
    # A quarter of 300 / 8 GB fits into 16 GB, a half doesn't.
    assert found[0].settings["training.micro_batches"] == 4
    assert found[0].settings["model.rematerialize"] == "none"
    assert found[0].settings["partitioning.fsdp"] == 8
    assert len(tried) == len({tuple(sorted(each.items())) for each in tried})  # nothing is planned twice


def test_search_without_anything_that_fits_says_how_much_is_missing(monkeypatch):
    scripted(monkeypatch, {"whole": 8 * 16 * 100e9}, SLOW)
    with pytest.raises(UserError, match=r"nothing fits for small on tpu:v5e:2x4 .*: the least .* is 100\.0 GB a chip"):
        search("small", CONFIG, TARGET, QUIET)


def test_search_needs_a_chip():
    with pytest.raises(UserError, match="--search: --target=cpu:8 has no chip"):
        search("small", CONFIG, parse_target("cpu:8"), QUIET)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--target=cpu:8"], "--config is missing"),
        (["--config=llama_1b"], "--target is missing"),
        (["--config=llama_1b", "--target=tpu:v9:4x4"], "there is no chip 'v9'"),
        (["--config=llama_1b", "--target=tpu:v5p:4x4"], "topology of 3 axes"),
        (["--config=llama_1b", "--target=cpu:8", "--config.partitioning.fsdp=3"], "must equal the 8 devices"),
        (["--config=llama_1b", "--target=cpu:8", "--compile"], "--target=cpu:8 is no accelerator"),
        (["--config=llama_1b,nothing", "--target=cpu:8"], "there is no config file nothing"),
        (["--config=ag_news", "--target=cpu:8"], "ag_news"),
        (["--config=llama_1b", "--target=cpu:100000"], "--target=cpu:100000"),
    ],
)
def test_mistakes_are_one_line(arguments, said, capsys):
    assert command_line(experiment.main, experiment.define_flags, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error


@pytest.mark.parametrize(("target", "extra"), [("tpu:v5e:4x4", "plan-tpu"), ("cuda:h100:8", "plan-cuda")])
def test_target_without_its_extra(target, extra, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    arguments = ["--config=llama_1b", f"--target={target}", "--compile"]
    assert command_line(experiment.main, experiment.define_flags, *arguments) == 2
    assert f"needs the extra {extra}, which is not installed: pip install" in capsys.readouterr().err
