"""A damaged journal is refused, or leads to the sweep that an undamaged one leads to."""

import random

import pytest

from lm.errors import UserError
from lm.sweeps.study import Study, work
from tests.sweeps.toy_study import GRID, ONCE, quiet, train


def results_of(directory) -> list:
    study = Study(directory, GRID)
    work(study, ONCE, train, quiet)
    return [(trial.params, trial.value) for trial in study.trials if trial.value is not None]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sweep")
    return results_of(directory), (directory / "study.journal").read_bytes()


def damaged(content: bytes, seed: int) -> bytes:
    rng = random.Random(seed)
    at = rng.randrange(len(content))
    return [
        content[:at],
        content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :],
        content[:at] + rng.randbytes(8) + content[at:],
        content[:at] + content[at + rng.randrange(1, 60) :],
    ][seed % 4]


@pytest.mark.parametrize("seed", range(60))
def test_damage_is_refused_or_without_effect(seed, finished, tmp_path):
    results, content = finished
    (tmp_path / "study.journal").write_bytes(damaged(content, seed))
    try:
        found = results_of(tmp_path)
    except UserError:
        return
    assert sorted(map(str, found)) == sorted(map(str, results))


def test_one_changed_digit_is_refused(finished, tmp_path):
    _, content = finished
    changed = content.replace(b'"loss":1.0', b'"loss":0.0', 1)
    assert changed != content
    (tmp_path / "study.journal").write_bytes(changed)
    with pytest.raises(UserError, match="line 6 differs from what was written"):
        Study(tmp_path, GRID)
