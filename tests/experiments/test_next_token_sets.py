"""Sets of next tokens: windows of documents, splits of them, resuming, and what is refused."""

import jax
import numpy as np
import pytest

from experiments.next_token_sets import documents as documents_module
from experiments.next_token_sets.__main__ import NextTokenSetsConfig, define_flags, main, next_token_sets
from experiments.next_token_sets.documents import (
    WindowConfig,
    encode_documents,
    read_documents,
    token_states,
    window_starts,
)
from experiments.next_token_sets.measurement import RULES, SetsConfig, split_documents
from experiments.next_token_sets.table import summarize
from lm.data.config import DataConfig
from lm.data.tokenizers import train_tokenizer
from lm.errors import UserError
from lm.inference.language_models import LanguageModel
from lm.models.decoder_lm import DecoderLM
from lm.objectives.registry import make_task
from lm.runs.trained_run import TrainedRun
from lm.runs.work_directory import with_vocabulary
from tests.tiny import command_line, tiny_config, write_corpus

WINDOWS = WindowConfig(length=16, context=4, each=3)
SETS = SetsConfig(splits=2, groups=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny decoder of bytes, which nobody trained."""
    config = tiny_config(tmp_path_factory.mktemp("model"))
    tokenizer = train_tokenizer(config.tokenizer, [])
    config = with_vocabulary(config, tokenizer)
    task = make_task(config.objective, config.model, tokenizer, None)
    return LanguageModel(TrainedRun(config, tokenizer, (), task, task.init(jax.random.key(0)), step=0))


@pytest.fixture
def config(tmp_path):
    source = write_corpus(tmp_path / "corpus", documents=30)
    data = DataConfig(source=source, validation_fraction=1.0)
    return NextTokenSetsConfig(data=data, windows=WINDOWS, sets=SETS)


@pytest.mark.parametrize("tokens", [5, 16, 17, 18, 33, 100])
def test_windows_are_within_the_document_and_apart(tokens):
    starts = window_starts(tokens, WINDOWS, np.random.default_rng(0))
    assert 1 <= len(starts) <= WINDOWS.each
    assert (np.diff(starts) >= WINDOWS.length).all()
    if tokens > WINDOWS.length:
        assert starts[-1] + WINDOWS.length < tokens  # the last target too


def test_hidden_states_are_those_of_a_forward_pass(config, model, tmp_path):
    """Token by token, with at least `context` tokens before each in its window, of short and of long documents."""
    documents = encode_documents(model, ["what", *read_documents(config.data, 1, seed=0), "it"], WINDOWS)
    assert [len(ids) for ids in documents][::2] == [5]  # with the token that documents start with; "it" is too short
    states = token_states(model, documents, WINDOWS, 0, tmp_path / "hidden")
    expected = []
    for number, ids in enumerate(documents):
        for start in window_starts(len(ids), WINDOWS, np.random.default_rng((0, number))):
            seen = ids[start : start + WINDOWS.length + 1]
            hidden_TD = model.model.apply({"params": model.params}, seen[None, :-1], method=DecoderLM.hidden)[0]
            places = range(WINDOWS.context - 1, len(seen) - 1)
            expected += [(number, seen[place + 1], hidden_TD[place]) for place in places]
    numbers, labels, hidden = zip(*expected, strict=True)
    np.testing.assert_array_equal(states.documents_N, numbers)
    np.testing.assert_array_equal(states.labels_N, labels)
    np.testing.assert_allclose(states.hidden_ND, hidden, atol=1e-5)


def test_parts_of_a_split_share_no_document_and_seeds_differ():
    one, other = (split_documents(50, SETS, seed) for seed in (0, 1))
    assert np.array_equal(np.sort(np.concatenate(one)), np.arange(50))
    assert [len(part) for part in one] == [10, 20, 20]
    assert not np.array_equal(one.test, other.test)
    with pytest.raises(UserError, match="there are 9 documents"):
        split_documents(9, SETS, 0)


def test_a_stopped_or_damaged_run_goes_on_and_gives_the_same_results(config, model, tmp_path, monkeypatch):
    whole = next_token_sets(config, tmp_path / "whole", model=model)
    assert [(row["probabilities"], row["sets"]) for row in whole["rows"]] == [
        (probabilities, sets) for probabilities in ("none", "temperature") for sets in RULES
    ]
    for row in whole["rows"]:
        assert row["coverage"] == pytest.approx(0.9, abs=0.1)
        assert row["coverage_low"] < row["coverage"] < row["coverage_high"]
    assert {path.name for path in (tmp_path / "whole").iterdir()} == {
        *("hidden", "splits", "table.md", "table.csv", "results.json", "sets.png")
    }

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("experiments.next_token_sets.__main__.measure", stop)
        with pytest.raises(KeyboardInterrupt):
            next_token_sets(config, tmp_path / "stopped", model=model)
    monkeypatch.setattr(documents_module, "last_hidden", stop)  # they are not computed again
    damaged = tmp_path / "stopped/splits/0.json"
    damaged.write_text((tmp_path / "whole/splits/0.json").read_text().replace('"coverage": 0.', '"coverage": 0.1'))
    again = next_token_sets(config, tmp_path / "stopped", model=model)
    assert again["rows"] == whole["rows"]
    assert (tmp_path / "stopped/table.csv").read_bytes() == (tmp_path / "whole/table.csv").read_bytes()


def test_means_over_splits():
    def split(coverage, size):
        lac = {"sets": "lac", "coverage": 0.9, "mean_size": 2.0}
        aps = {"sets": "aps", "coverage": coverage, "mean_size": size}
        rows = [
            {"probabilities": "none", "by_frequency": {}, "coverage_low": None, **row, "median_size": 1, "was_empty": 0}
            for row in (lac, aps)
        ]
        ends = dict.fromkeys(("coverage_low", "coverage_high", "mean_size_low", "mean_size_high"), 1.0)
        counts = {name: {"fit": 1, "calibration": 2, "test": 3} for name in ("documents", "tokens")}
        return {"temperature": "T = 1", **counts, "rows": [{**row, **ends} for row in rows]}

    row = summarize([split(0.8, 4.0), split(0.9, 8.0)])["rows"][1]
    assert row["coverage"] == pytest.approx(0.85)
    assert row["coverage_spread"] == pytest.approx(np.std([0.8, 0.9], ddof=1))
    assert row["times_lac"] == pytest.approx(3.0)


def test_what_is_wrong_is_one_line(model, tmp_path, capsys):
    with pytest.raises(UserError, match="length=32 is more than the 16 tokens"):
        encode_documents(model, ["x"], WindowConfig(length=32, context=4))
    with pytest.raises(UserError, match="context must be from 1 to below length"):
        WindowConfig(length=4, context=4)
    with pytest.raises(UserError, match="what they leave"):
        SetsConfig(fit_share=0.5, test_share=0.5)
    status = command_line(main, define_flags, "--config=next_token_sets:own", f"--workdir={tmp_path / 'new'}")
    assert status == 2
    assert "error: config.model is empty" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_other_windows_need_another_directory(model, tmp_path):
    documents = [np.arange(20, dtype=np.int32)] * 2
    token_states(model, documents, WINDOWS, 0, tmp_path / "hidden")
    with pytest.raises(UserError, match="holds hidden states of other windows: use another --workdir"):
        token_states(model, documents, WindowConfig(length=16, context=5, each=3), 0, tmp_path / "hidden")
