"""Configs name the field that is wrong."""

import pytest

from lm.data.config import DataConfig, ExamplesConfig, TokenizerConfig, check_overridden_sources
from lm.errors import UserError


def test_defaults_are_valid():
    DataConfig()
    ExamplesConfig()
    TokenizerConfig()


def test_columns_are_pairs():
    config = ExamplesConfig(columns=("text=sentence", "label=a=b"))
    assert config.column_names == {"text": "sentence", "label": "a=b"}


@pytest.mark.parametrize(
    ("config", "values", "words"),
    [
        (DataConfig, {"validation_fraction": 3}, "config.data.validation_fraction must be between 0 and 1, got 3"),
        (DataConfig, {"document_separator": "tab"}, "config.data.document_separator must be one of file, blank_line"),
        (DataConfig, {"field": ""}, "config.data.field must not be empty"),
        (DataConfig, {"cleaning": "nfc"}, "config.data.cleaning must be a tuple"),
        (DataConfig, {"cleaning": ("nfd",)}, "config.data.cleaning has no step 'nfd': known steps are nfc, nfkc"),
        (ExamplesConfig, {"validation_fraction": 1.0}, "config.data.validation_fraction must be in [0, 1), got 1.0"),
        (ExamplesConfig, {"folds": 1}, "config.data.folds must be 0 or at least 2, got 1"),
        (ExamplesConfig, {"folds": 3, "fold": 3}, "config.data.fold must be in [0, config.data.folds=3), got 3"),
        (ExamplesConfig, {"fold": 1}, "config.data.fold must be in [0, config.data.folds=0), got 1"),
        (ExamplesConfig, {"folds": 3, "validation": "csv:a.csv"}, "leave config.data.validation empty"),
        (ExamplesConfig, {"train_rows": -1}, "config.data.train_rows must not be negative, got -1"),
        (ExamplesConfig, {"columns": "text=a"}, "config.data.columns must be a tuple"),
        (
            ExamplesConfig,
            {"columns": ("text",)},
            "config.data.columns must be pairs such as 'text=sentence', got 'text'",
        ),
        (ExamplesConfig, {"columns": ("a=b", "a=c")}, "config.data.columns names 'a' twice"),
        (ExamplesConfig, {"cleaning": ("stem",)}, "config.data.cleaning has no step 'stem'"),
        (ExamplesConfig, {"cleaning": ("exact_duplicates",)}, "exact_duplicates works on documents, not rows"),
        (
            TokenizerConfig,
            {"lowercase": True},
            "config.tokenizer.lowercase is for the kinds wordpiece and words, not bpe",
        ),
        (
            TokenizerConfig,
            {"split_punctuation": False},
            "config.tokenizer.split_punctuation is for the kinds wordpiece",
        ),
        (TokenizerConfig, {"kind": "word"}, "config.tokenizer.kind must be one of bytes, characters, bpe"),
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


def test_sources_of_the_config_file_are_not_mixed_with_another_training_source():
    data = ExamplesConfig(train="csv:mine.csv", validation="jsonl:a.jsonl", test="jsonl:b.jsonl")
    with pytest.raises(UserError, match=r"config\.data\.validation=jsonl:a.jsonl is the config"):
        check_overridden_sources(data, {"data.train"})
    with pytest.raises(UserError, match=r"config\.data\.test=jsonl:b.jsonl is the config file's: set it too"):
        check_overridden_sources(data, {"data.train", "data.validation"})
    for asked_for in ({"data.train", "data.validation", "data.test"}, {"data.test"}, set()):
        check_overridden_sources(data, asked_for)
    check_overridden_sources(ExamplesConfig(train="csv:mine.csv"), {"data.train"})
    pretraining = DataConfig("text:mine.txt", validation_source="text:a.txt")
    with pytest.raises(UserError, match=r"config\.data\.validation_source=text:a.txt is"):
        check_overridden_sources(pretraining, {"data.source"})
