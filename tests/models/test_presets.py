"""Presets by name."""

import pytest

from lm.errors import UserError
from lm.models.presets import PRESETS, PUBLISHED_PARAMETERS, preset


def test_every_preset_is_found_by_name():
    for name, config in PRESETS.items():
        assert preset(name) is config
    assert PUBLISHED_PARAMETERS.keys() <= PRESETS.keys()


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(UserError, match=r"no model preset 'gpt3'.*gpt2_124m.*llama3_8b"):
        preset("gpt3")
