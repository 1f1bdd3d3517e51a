"""Configs name the field that is wrong."""

import pytest

from lm.data.config import DataConfig, TokenizerConfig
from lm.errors import UserError


def test_defaults_are_valid():
    DataConfig()
    TokenizerConfig()


@pytest.mark.parametrize(
    ("config", "values", "words"),
    [
        (DataConfig, {"validation_fraction": 3}, "config.data.validation_fraction must be between 0 and 1, got 3"),
        (DataConfig, {"document_separator": "tab"}, "config.data.document_separator must be one of file, blank_line"),
        (DataConfig, {"field": ""}, "config.data.field must not be empty"),
        (DataConfig, {"cleaning": "nfc"}, "config.data.cleaning must be a tuple"),
        (DataConfig, {"cleaning": ("nfd",)}, "config.data.cleaning has no step 'nfd': known steps are nfc, nfkc"),
        (TokenizerConfig, {"kind": "words"}, "config.tokenizer.kind must be one of bytes, characters, bpe"),
        (
            TokenizerConfig,
            {"vocab_size": 100},
            "config.tokenizer.vocab_size must be at least 257 for kind bpe, got 100",
        ),
        (TokenizerConfig, {"kind": "file"}, "config.tokenizer.path must name a tokenizer.json"),
    ],
)
def test_bad_values_are_named(config, values, words):
    with pytest.raises(UserError) as caught:
        config(**values)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
