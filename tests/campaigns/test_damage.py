"""The short form of `tests.campaigns.damage`."""

import pytest

from tests.campaigns.damage import run_campaign


@pytest.mark.slow
def test_no_damage_is_silently_wrong():
    lines = []
    assert run_campaign(30, seed=7, report=lines.append) == 0, "\n".join(lines)
