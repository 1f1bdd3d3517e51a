"""The sweep as an experiment in a real PostgreSQL server; its runs are a formula."""

import dataclasses
import json

import pytest

from experiments.sweep import SweepConfig, define_flags, main, sweep
from lm.errors import UserError
from tests.experiments.test_sweep import QUIET, formula, grid_config, write_base
from tests.postgresql import PASSWORD, execute
from tests.tiny import command_line, files_below, tiny_config


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    return write_base(folder, tiny_config(folder, steps=3, evaluate_every=1))


def config_file(folder, config: SweepConfig) -> str:
    path = folder / "sweep.py"
    path.write_text(
        "from lm.configuration import from_config_dict, to_config_dict\nfrom experiments.sweep import SweepConfig\n"
        "import json\n\ndef get_config():\n"
        f"    values = json.loads({json.dumps(dataclasses.asdict(config))!r})\n"
        "    return to_config_dict(from_config_dict(SweepConfig, values))\n"
    )
    return str(path)


@pytest.mark.slow
def test_every_machine_has_the_same_report_and_none_the_password(base, database_url, tmp_path, capfd):
    config, calls = grid_config(base, storage=database_url), []

    def counted(*arguments):
        calls.append(arguments)
        return formula(*arguments)

    expected = sweep(grid_config(base), tmp_path / "journal", QUIET, formula)
    for name in ("one", "other"):
        assert sweep(config, tmp_path / name, QUIET, counted) == expected
    assert len(calls) == 6
    flags = (f"--config={config_file(tmp_path, config)}", f"--workdir={tmp_path / 'third'}", "--report")
    assert command_line(main, define_flags, *flags) == 0
    found = [json.loads((tmp_path / name / "sweep.json").read_text()) for name in ("journal", "one", "other", "third")]
    assert found[0]["trials"] == found[1]["trials"]
    assert found[1] == found[2] == found[3]
    assert found[3]["config"]["storage"] == database_url
    assert (tmp_path / "journal/table.csv").read_text() == (tmp_path / "third/table.csv").read_text()
    said = capfd.readouterr()
    assert "6 trials: 6 complete" in said.out
    assert PASSWORD not in said.out + said.err
    assert not any(PASSWORD.encode() in (tmp_path / name).read_bytes() for name in files_below(tmp_path))


@pytest.mark.slow
def test_another_search_in_the_database_needs_another_name(base, database_url, tmp_path):
    config = grid_config(base, storage=database_url)
    sweep(config, tmp_path / "one", QUIET, formula)
    other = dataclasses.replace(config, metric="accuracy")
    with pytest.raises(UserError, match=r"holds a study 'sweep'.*config.metric was '', is 'accuracy'.*config.study$"):
        sweep(other, tmp_path / "other", QUIET, formula)
    assert not (tmp_path / "other").exists()
    sweep(dataclasses.replace(other, study="other"), tmp_path / "other", QUIET, formula)
    assert len(sweep(config, tmp_path / "one", QUIET, None)) == 6


@pytest.mark.slow
def test_a_directory_keeps_to_its_journal_or_database(base, database_url, tmp_path):
    journal, database = grid_config(base), grid_config(base, storage=database_url)
    sweep(journal, tmp_path / "journal", QUIET, formula)
    with pytest.raises(UserError, match=r"config.storage='': set it, or use another --workdir"):
        sweep(database, tmp_path / "journal", QUIET, formula)
    sweep(database, tmp_path / "database", QUIET, formula)
    with pytest.raises(UserError, match=r"config.storage='postgresql:.*: set it, or use another --workdir"):
        sweep(journal, tmp_path / "database", QUIET, formula)
    same_server = dataclasses.replace(database, storage=database_url.replace("127.0.0.1", "localhost"))
    assert len(sweep(same_server, tmp_path / "database", QUIET, None)) == 6


@pytest.mark.slow
def test_a_report_needs_a_study(base, database_url, tmp_path):
    with pytest.raises(UserError, match=r"holds no study 'sweep': check config.study"):
        sweep(grid_config(base, storage=database_url), tmp_path / "new", QUIET, None)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_sweep_whose_server_goes_away_ends_with_one_line_and_can_be_resumed(
    base, database_url, postgresql_server, tmp_path
):
    calls, name = [], database_url.rpartition("/")[2]

    def cut_off(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            execute(f"{postgresql_server}/postgres", f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        return formula(*arguments)

    config = grid_config(base, storage=database_url)
    with pytest.raises(UserError, match=r"not currently accepting.*run the same command to continue$") as caught:
        sweep(config, tmp_path, QUIET, cut_off)
    assert "\n" not in str(caught.value)
    execute(f"{postgresql_server}/postgres", f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    rows = sweep(config, tmp_path, QUIET, cut_off)
    assert [row.state for row in rows] == ["complete"] * 5 + ["unfinished"]  # until the grace period ends
    assert len(calls) == 3 + 3


def test_a_password_in_the_url_is_refused_without_being_shown(base, tmp_path, capfd):
    flags = (f"--config={config_file(tmp_path, grid_config(base))}", f"--workdir={tmp_path / 'new'}")
    url = "postgresql://user:swordfish@127.0.0.1/sweeps"
    assert command_line(main, define_flags, *flags, f"--config.storage={url}") == 2
    said = capfd.readouterr()
    assert "config.storage must not have a password" in said.err
    assert "swordfish" not in said.out + said.err
    assert not (tmp_path / "new").exists()


def test_a_directory_of_an_earlier_version_is_resumed(base, tmp_path):
    sweep(grid_config(base), tmp_path, QUIET, formula)
    file = tmp_path / "sweep_config.json"
    known = json.loads(file.read_text())
    del known["config"]["storage"], known["config"]["study"]
    file.write_text(json.dumps(known))
    assert len(sweep(grid_config(base), tmp_path, QUIET, None)) == 6
