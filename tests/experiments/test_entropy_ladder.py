"""The experiment on entropy rates, on tiny models and on made-up measurements.

Axes: B documents, T positions, C chosen positions.
"""

import csv
import dataclasses
import io

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.entropy_rate.__main__ import entropy_rates, write_table
from experiments.entropy_rate.ladder import SIZES, EntropyRateConfig, parse_rung, run_config
from experiments.entropy_rate.measuring import held_out_windows
from experiments.entropy_rate.picture import by_position, save_picture
from experiments.entropy_rate.table import as_csv, as_markdown, make_rows
from lm.data.store import TokenStore
from lm.errors import UserError
from lm.runs.config import SamplesConfig
from tests.tiny import replace, tiny_config


def measurements(gap: float, parameters: int = 1000, seed: int = 0) -> dict[str, np.ndarray]:
    """Of a model whose text has `gap` nats more entropy than its loss, and none after look-ahead."""
    generator = np.random.default_rng(seed)
    near_BT = 2 + 0.05 * generator.normal(size=(20, 40))
    found = {"parameters": np.array(parameters), "temperature": np.array(1.1), "positions": np.arange(0, 40, 4)}
    found |= {"alpha": np.array(0.2), "alpha_standard_error": np.array(0.01)}
    for correction in ("none", "temperature"):
        found |= {f"{correction}/{part}": near_BT.copy() for part in ("loss", "true_text")}
        found[f"{correction}/own"] = near_BT[::-1] + gap
    found |= {"look_ahead/loss": near_BT[:, ::4] - 0.1, "look_ahead/true_text": near_BT[:, ::4]}
    return found | {"look_ahead/own": near_BT[:8] - 0.1}


def config_of(folder, **settings) -> EntropyRateConfig:
    """Tiny runs of six steps on bytes."""
    base = replace(
        tiny_config(folder), model={"dropout": 0.0, "max_length": 24}, tokenizer={"end_of_text": False}, data={}
    )
    base = dataclasses.replace(base, samples=SamplesConfig(prompts=()))
    sizes = {"prompt_tokens": 4, "new_tokens": 12, "documents": 3, "fit_documents": 3, "look_ahead_documents": 2}
    bases = dict.fromkeys(("prose_characters", "prose_tokens", "code_characters", "code_tokens"), base)
    values = {"ladder": ("prose_characters:0.1M:0",), "look_ahead_every": 4, "batch_size": 2, **sizes, **settings}
    return EntropyRateConfig(**bases, **values)


def test_rows_of_known_measurements():
    none, temperature, look_ahead = make_rows("model", measurements(0.3))
    assert none.drift.gap.value == pytest.approx(0.3)
    assert none.drift.gap.low > 0
    assert none.loss_change.value == 0
    assert (temperature.parameter, look_ahead.parameter) == (1.1, 0.2)
    assert look_ahead.loss_change.value == pytest.approx(-0.1)
    assert look_ahead.drift.loss.value == pytest.approx(none.drift.loss.value - 0.1)
    assert abs(look_ahead.drift.gap.value) < 0.02


def test_the_table_has_a_line_for_each_correction_and_one_for_each_mean_over_seeds():
    names = [f"prose_characters_{size}_seed{seed}" for size in ("0.1M", "1M") for seed in (0, 1)]
    rows = [
        row
        for number, name in enumerate(names)
        for row in make_rows(name, measurements(0.3 / (1 + number // 2), 1000 * 4 ** (number // 2), number))
    ]
    records = list(csv.DictReader(io.StringIO(as_csv(rows))))
    assert len(records) == 12
    assert float(records[0]["drift_gap_value"]) == pytest.approx(0.3)
    text = as_markdown(rows)
    assert "| prose_characters_0.1M | 2     | look-ahead" in text
    assert "prose_characters: the gap scales with parameters to the power -0.500" in text  # half the gap at four times


def test_means_by_position_cover_every_position_once():
    entropy_BT = np.tile(np.arange(1.0, 41.0), (3, 1))
    centres_M, mean_M, low_M, high_M = by_position(entropy_BT)
    assert centres_M[0] == mean_M[0] == 1
    assert mean_M[-1] < 40
    assert (np.diff(mean_M) > 0).all()
    np.testing.assert_allclose(low_M, high_M)


def test_windows_do_not_overlap_and_stay_within_documents(tmp_path):
    config = config_of(tmp_path)
    store = TokenStore(np.arange(150), np.array([0, 10, 70]), 150)
    windows_WL = np.concatenate(held_out_windows(store, config, "model"))
    assert windows_WL.shape == (6, 16)
    assert len(np.unique(windows_WL)) == windows_WL.size
    document_WL = np.searchsorted([0, 10, 70], windows_WL, side="right")
    assert (document_WL == document_WL[:, :1]).all()
    with pytest.raises(
        UserError, match=r"model: the held-out documents have 8 windows of 16 tokens, fewer than .* 12: set"
    ):
        held_out_windows(store, dataclasses.replace(config, documents=10), "model")


@pytest.mark.parametrize("entry", ["prose:0.1M:0", "prose_tokens:7M:0", "prose_tokens:1M:x", "prose_tokens:1M:0:1", ""])
def test_an_unknown_rung_is_refused(entry):
    with pytest.raises(UserError, match=r"config.ladder: .* must be CORPUS:SIZE:SEED"):
        parse_rung(entry)


def test_a_run_has_the_size_and_the_seed_of_its_rung(tmp_path):
    found = run_config(config_of(tmp_path), parse_rung("code_tokens:1M:3"))
    assert (found.model.layers, found.model.width, found.model.heads) == SIZES["1M"]
    assert found.seed == 3


def test_the_picture_and_all_tables_are_written(tmp_path):
    text = write_table({f"model{n}": measurements(0.1, seed=n) for n in range(5)}, tmp_path)
    assert text.count("look-ahead") == 5
    assert {path.name for path in tmp_path.iterdir()} == {"table.json", "table.csv", "table.md", "entropy.png"}


@pytest.mark.slow
def test_the_command_trains_measures_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setitem(SIZES, "0.1M", (2, 16, 2))
    config, directory = config_of(tmp_path), tmp_path / "out"
    text = entropy_rates(config, directory)
    file = directory / "measured" / "prose_characters_0.1M_seed0.npz"
    before, arrays = file.stat().st_mtime_ns, dict(np.load(file))
    assert {name: array.shape for name, array in arrays.items() if "/" in name} == {
        **dict.fromkeys(("none/loss", "none/true_text", "none/own"), (3, 12)),
        **dict.fromkeys(("temperature/loss", "temperature/true_text", "temperature/own"), (3, 12)),
        **{"look_ahead/loss": (3, 3), "look_ahead/true_text": (3, 3), "look_ahead/own": (2, 12)},
    }
    assert entropy_rates(config, directory) == text
    assert file.stat().st_mtime_ns == before  # nothing was measured again
    other = str(directory / "models" / "prose_characters_0.1M_seed0")
    again = entropy_rates(dataclasses.replace(config, ladder=(), models=(other,), seed=1), directory)
    assert again != text
    file.write_bytes(file.read_bytes()[:100])
    assert entropy_rates(config, directory) == text  # what is damaged is measured again


def test_the_picture_has_a_panel_for_each_model_and_no_empty_ones(tmp_path, monkeypatch):
    saved, save = [], Figure.savefig

    def kept(figure, *arguments, **settings):
        saved.append(figure)
        save(figure, *arguments, **settings)

    monkeypatch.setattr(Figure, "savefig", kept)
    random = np.random.default_rng(0)
    found = {key: random.uniform(1, 2, size=(3, 64)) for key in ("none/own", "none/true_text", "none/loss")}
    save_picture({f"model_{number}": found for number in range(5)}, tmp_path / "entropy.png")
    assert [panel.get_title() for panel in saved[0].axes] == [f"model {number}" for number in range(5)]
