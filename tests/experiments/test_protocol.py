"""The protocol table: settings, cells against the runs' own numbers, conclusions that flip, label efficiency."""

import dataclasses
import json

import numpy as np
import pytest
from scipy import special

from configs.prompt import CONFIGS
from configs.protocol import get_config
from experiments.protocol import label_efficiency
from experiments.protocol.__main__ import protocol
from experiments.protocol.cells import METHODS, UNCALIBRATED, Cell, Cells, Measured
from experiments.protocol.conclusions import Comparer, Protocol, changes_of, flips
from experiments.protocol.label_efficiency import _applied, lines, points
from experiments.protocol.settings import ProtocolConfig, Setting, lettered, settings_of
from experiments.protocol.tables import all_rows, summary
from lm.calibration.calibrators import CALIBRATORS
from lm.calibration.predictions import Predictions
from lm.data.config import ExamplesConfig
from lm.errors import UserError
from lm.prompting.answer_scores import AnswerScores
from lm.prompting.config import PromptConfig
from lm.prompting.score_files import add_scores
from lm.runs.prompted_run import PromptedRunConfig
from lm.runs.work_directory import WorkDirectory
from tests.tiny import replace, run, tiny_config

SETS = {name: config for name, config in CONFIGS.items() if name}
CONFIG = ProtocolConfig(**SETS, data_sets=("sst2", "trec"), seeds=2, resamples=50, draws=2)
RULES = {"sst2": 2, "trec": 3}


def write_scores(directory, classes, seed, rows=120):
    """Scores of a model that prefers the first class, whatever the row says."""
    rng = np.random.default_rng(seed)
    preference_C = 2.0 * np.arange(classes)[::-1]
    for split, count in {"validation": rows, "test": rows}.items():
        signal_NC = 2 * rng.normal(size=(count, classes))
        labels_N = (signal_NC + rng.gumbel(size=signal_NC.shape)).argmax(axis=1)
        scores = [answers(special.log_softmax(each) - 3) for each in signal_NC + preference_C]
        write(directory.scores(split), scores)
        known = Predictions(
            special.log_softmax(signal_NC + preference_C, axis=1), labels_N, [f"{split} {n}" for n in range(count)]
        )
        known.save(directory.predictions / f"{split}.npz")
    write(directory.scores("prior_content_free"), [answers(special.log_softmax(preference_C) - 1)])
    write(directory.scores("prior_domain"), [answers(special.log_softmax(preference_C) - 1)] * 2)
    write(directory.scores("prior_premise"), [answers(special.log_softmax(preference_C / 2) - 1)])


def answers(log_probs):
    classes = range(len(log_probs))
    tokens, sizes = tuple(1 + n % 2 for n in classes), tuple(4 + n for n in classes)
    return AnswerScores(tuple(map(float, log_probs)), tokens, sizes, tuple(classes))


def write(path, scores):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        add_scores(file, [{"place": f"row {number}"} for number in range(len(scores))], scores)


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    folder = tmp_path_factory.mktemp("protocol")
    runs = {setting: WorkDirectory(folder / setting.name) for setting in settings_of(CONFIG)}
    for seed, (setting, directory) in enumerate(runs.items()):
        write_scores(directory, RULES[setting.data_set], seed)
    return Cells(runs)


def test_every_data_set_has_the_same_settings_and_no_two_share_a_folder():
    settings = settings_of(CONFIG)
    assert len({setting.name for setting in settings}) == len(settings)
    per_set = [{dataclasses.replace(s, data_set="") for s in settings if s.data_set == name} for name in RULES]
    assert per_set[0] == per_set[1]
    assert {setting.shots for setting in settings} == {0, 1, 4, 8}
    # The main settings come first.
    assert [setting.data_set for setting in settings[:2]] == ["sst2", "trec"]


def test_letters_are_listed_once_for_all_rows():
    prompt = lettered(SETS["trec"].prompt)
    assert prompt.instruction.endswith("A. Abbreviation\nB. Description\nC. Entity\nD. Person\nE. Location\nF. Number")
    assert prompt.answers == ("ABBR= A", "DESC= B", "ENTY= C", "HUM= D", "LOC= E", "NUM= F")
    with pytest.raises(UserError, match=r"config\.prompt\.answers is empty: letters need"):
        lettered(PromptConfig())


def test_a_set_that_is_unknown_is_refused():
    with pytest.raises(UserError, match=r"config\.data_sets names 'imdb'; known: sst2, ag_news, trec, sick, sst5, rev"):
        dataclasses.replace(CONFIG, data_sets=("imdb",))
    assert get_config().trec.prompt.item == SETS["trec"].prompt.item


def test_a_cell_is_what_the_run_measured(cells):
    setting = Setting("trec")
    known = Predictions.load(cells.runs[setting].predictions / "test.npz")
    found = cells.measured(Cell(setting, UNCALIBRATED))
    np.testing.assert_allclose(found.confidence_N, special.softmax(known.logits, axis=1).max(axis=1), rtol=1e-5)
    raw = cells.unnormalized(setting)
    np.testing.assert_allclose(raw.confidence_N, np.exp(-3) * found.confidence_N, rtol=1e-5)
    np.testing.assert_allclose(raw.nll_N, found.nll_N + 3, rtol=1e-5)
    # A prior that is exact is all that a model lacks which only prefers a class.
    assert cells.measured(Cell(setting, "contextual")).nll < found.nll - 0.1
    half = cells.measured(Cell(setting, UNCALIBRATED, score="mean"))
    assert half.nll != pytest.approx(found.nll, abs=0.05)


def test_missing_scores_are_named(cells, tmp_path):
    directory = WorkDirectory(tmp_path / "run")
    write_scores(directory, 2, seed=0, rows=12)
    directory.scores("test").write_text("")
    with pytest.raises(UserError, match=r"test\.jsonl holds 0 of 12 rows: delete the run's folder and run again"):
        Cells({Setting("sst2"): directory}).measured(Cell(Setting("sst2"), UNCALIBRATED))


class Fixed:
    """Cells whose errors are given: a method's confidence minus its accuracy, of a thousand items."""

    def __init__(self, gaps):
        self._gaps = gaps

    def measured(self, cell):
        gap = self._gaps[cell.score].get(cell.method)
        if gap is None:
            return None
        correct_N = np.arange(1000) % 2
        # Differences in the loss are not all equal, so that they can be tested.
        nll_N = gap + 0.01 * np.random.default_rng(0).normal(size=1000) * (1 + 10 * gap)
        return Measured(np.full(1000, 0.5 + gap), correct_N.astype(float), nll_N, nll_N)


def test_conclusions_that_flip_are_counted():
    gaps = {
        "sum": {"none": 0.3, "shift": 0.1, "pmi": 0.2},
        "mean": {"none": 0.3, "shift": 0.1, "pmi": 0.4},  # only none against pmi flips
        "bytes": {"none": 0.1, "shift": 0.2, "pmi": 0.1},  # a tie is no conclusion
    }
    comparer = Comparer(Fixed(gaps), resamples=200)
    base = Protocol(Setting("sst2"))
    same = flips(comparer, "nothing", [(base, base)])
    assert (same.conclusions, same.flipped, same.significant, same.survived) == (3, 0, 1, 1)
    mean = flips(comparer, "mean", [(base, dataclasses.replace(base, score="mean"))])
    assert (mean.conclusions, mean.flipped) == (3, pytest.approx(1 / 3))
    assert mean.survived == pytest.approx(2 / 3)
    assert mean.reversed == mean.flipped_significant == pytest.approx(1 / 3)
    assert flips(comparer, "bytes", [(base, dataclasses.replace(base, score="bytes"))]).conclusions == 2


def test_protocols_that_are_compared_differ_in_one_thing():
    settings = settings_of(CONFIG)
    changes = changes_of(CONFIG, settings)
    assert all(changes.values())
    for axis, pairs in changes.items():
        for before, after in pairs:
            fields = [f.name for f in dataclasses.fields(Protocol) if getattr(before, f.name) != getattr(after, f.name)]
            assert len(fields) == 1, axis
            assert before.setting.data_set == after.setting.data_set


@pytest.mark.slow
def test_the_table_has_every_method_and_the_floor_beside_each_error(cells):
    setting = Setting("sst2")
    rows = all_rows(CONFIG, Cells({setting: cells.runs[setting]}))
    plain = [row for row in rows if not row.cell.after]
    assert {row.method for row in plain} > set(METHODS)
    # Nothing is expected of probabilities that are not renormalized, of which all are tiny.
    assert all(0 < row.floor < 0.25 and row.ece_low <= row.ece_high for row in plain[1:])
    found = {line["method"]: line for line in summary(rows, lambda row: row in plain and row.cell.score == "sum")}
    assert found["shift"]["lower_nll"] == found["shift"]["settings"] == 1
    assert found[UNCALIBRATED]["lower_nll"] == 0


def test_the_labels_of_items_without_labels_change_nothing(cells):
    fit_part, test_part = cells.scored(Setting("trec"), "sum")
    wrong = dataclasses.replace(fit_part, labels_N=np.zeros_like(fit_part.labels_N))
    for method in ("shift", "shift_temperature_bias"):
        items = 0 if not CALIBRATORS[method].sees_labels else 16
        chosen_N = np.random.default_rng(0).permutation(len(fit_part))[:items]
        labels_N = wrong.labels_N.copy()
        labels_N[chosen_N] = fit_part.labels_N[chosen_N]
        other = dataclasses.replace(fit_part, labels_N=labels_N)
        found, expected = (_applied(method, items, part, test_part, seed=0) for part in (other, fit_part))
        np.testing.assert_array_equal(found.logits, expected.logits, err_msg=method)


@pytest.mark.slow
def test_label_efficiency_has_a_line_for_each_number_of_items(cells, monkeypatch):
    monkeypatch.setattr(label_efficiency, "COUNTS", (4, 256))
    monkeypatch.setattr(label_efficiency, "WITH_LABELS", ("temperature_bias", "shift_temperature_bias"))
    few = Cells({setting: cells.runs[setting] for setting in (Setting("trec"), Setting("trec", shots=4))})
    found = points(CONFIG, few)
    rows = {(line.method, line.items): line for line in lines(found)}
    most = 120  # all that there are
    assert {items for method, items in rows if method == "shift"} == {4, most}
    assert {items for method, items in rows if method == "contextual"} == {0}
    assert rows["shift", most].change == 0
    assert rows["shift", most].better == rows["shift", most].settings == 2
    assert rows["shift_temperature_bias", 4].nll < rows["temperature_bias", 4].nll
    assert rows["temperature_bias", most].nll < rows[UNCALIBRATED, 0].nll


@pytest.mark.slow
def test_one_command_scores_continues_and_writes_all_tables(tmp_path, monkeypatch):
    rows = [{"text": f"{number} {'good' if number % 2 else 'bad'}", "label": str(number % 2)} for number in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "test.jsonl").write_text("".join(json.dumps({**row, "text": row["text"] + "!"}) + "\n" for row in rows))
    run(replace(tiny_config(tmp_path, steps=2), model={"layers": 1, "max_length": 64}), tmp_path / "model")
    data = ExamplesConfig(
        train=f"jsonl:{tmp_path}/rows.jsonl", test=f"jsonl:{tmp_path}/test.jsonl", validation_fraction=0.5
    )
    prompt = PromptConfig(item="{text}:", separator="\n", answers=("0= a", "1= b"))
    config = dataclasses.replace(
        CONFIG,
        sst2=PromptedRunConfig(data=data, prompt=prompt, domain_texts=2),
        model=str(tmp_path / "model"),
        data_sets=("sst2",),
        shots=(0,),
        main_shots=1,
        seeds=1,
        orders=1,
    )
    text = protocol(config, tmp_path / "study")
    assert {path.name for path in (tmp_path / "study").iterdir()} == {
        "runs",
        *(f"protocol.{suffix}" for suffix in ("md", "csv", "json", "png")),
        *(f"label_efficiency.{suffix}" for suffix in ("md", "csv", "png")),
    }
    assert len(list((tmp_path / "study" / "runs").iterdir())) == 3
    monkeypatch.setattr("experiments.protocol.__main__.prompt", lambda *args: pytest.fail("scored again"))
    assert protocol(config, tmp_path / "study") == text
