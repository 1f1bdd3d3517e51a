"""Special tokens of published tokenizers: read, saved, checked, and never spelled by text."""

import json

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, processors

from lm.data.config import TokenizerConfig
from lm.data.frames import Frame
from lm.data.special_tokens import SpecialTokens
from lm.data.tokenizers import Tokenizer, train_tokenizer
from lm.errors import UserError
from tests.data.published_files import make_backend

CONFIG = {
    "bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": False},
    "eos_token": "</s>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
    "end_tokens": ["<end>"],
    "start_of_output_token": "<pad>",
    "model_max_length": 1e30,
    "chat_template": [{"name": "tools", "template": "x"}, {"name": "default", "template": "y"}],
}


def save(folder, config=CONFIG, backend=None):
    (backend or make_backend()).save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder / "tokenizer.json"


def test_the_model_s_own_tokens_have_their_roles(tmp_path):
    tokenizer = Tokenizer.load(save(tmp_path))
    assert [tokenizer.role_id(role) for role in ("bos", "eos", "pad", "mask", "cls")] == [1, 2, 3, 4, None]
    assert (tokenizer.end_of_text, tokenizer.ends, tokenizer.start_of_output) == (2, (2, 5), 3)
    assert [tokenizer.special_id(name) for name in ("[MASK]", "[CLS]", "[SEP]", "[PAD]")] == [4, 1, 2, None]
    assert tokenizer.published.model_max_length is None
    assert tokenizer.published.chat_template == "y"


def test_without_the_file_nothing_changes(tmp_path):
    path = save(tmp_path, config=None)
    tokenizer = Tokenizer.load(path)
    assert (tokenizer.published, tokenizer.frame) == (None, None)
    assert (tokenizer.end_of_text, tokenizer.ends, tokenizer.start_of_output) == (2, (2,), 2)
    assert tokenizer.with_start([6]) == [2, 6]
    assert tokenizer.with_frame([6]) == [6, 2]
    assert Tokenizer.load(path, end_of_text=False).ends == ()


def test_what_is_saved_is_what_was_read(tmp_path):
    tokenizer = Tokenizer.load(save(tmp_path))
    (tmp_path / "copy").mkdir()
    tokenizer.save(tmp_path / "copy")
    assert (tmp_path / "copy" / "tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()
    copy = Tokenizer.load(tmp_path / "copy" / "tokenizer.json")
    assert (copy.published, copy.digest, copy.ends) == (tokenizer.published, tokenizer.digest, tokenizer.ends)
    assert copy.digest != Tokenizer.load(save(tmp_path, CONFIG | {"eos_token": "<end>"})).digest


def test_one_of_our_own_leaves_no_special_tokens_of_another(tmp_path):
    path = save(tmp_path)
    own = train_tokenizer(TokenizerConfig("bytes"), lambda split: [])
    own.save(path)
    assert Tokenizer.load(path).digest == own.digest


def test_text_spells_no_token_that_the_config_names(tmp_path):
    tokenizer = Tokenizer.load(save(tmp_path, backend=make_backend(marked=["<unk>"])))
    assert tokenizer.special_id("<end>") == 5
    assert tokenizer.encode("a <end> </s> b") == [6, 0, 0, 7]
    again = Tokenizer.load(save(tmp_path, backend=make_backend(marked=["<unk>"])))
    again.save(tmp_path)
    assert Tokenizer.load(tmp_path).encode("a <end> </s> b") == [6, 0, 0, 7]


def test_frames_come_from_the_post_processor(tmp_path):
    backend = make_backend()
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 1))
    tokenizer = Tokenizer.load(save(tmp_path, backend=backend))
    assert tokenizer.frame == Frame((1,), (2, 2), (2,), second_type=0)
    assert tokenizer.with_frame([6]) == [1, 6, 2]
    assert tokenizer.with_start([6]) == [1, 6]


def test_frames_come_from_the_config_where_there_is_no_post_processor(tmp_path):
    tokenizer = Tokenizer.load(save(tmp_path, CONFIG | {"add_bos_token": True}))
    assert tokenizer.frame == Frame((1,), (1,), (), between_second=1)
    assert Tokenizer.load(save(tmp_path)).frame == Frame()
    assert tokenizer.with_start([]) == [1]
    assert Tokenizer.load(save(tmp_path)).with_start([]) == [1]
    assert Tokenizer.load(save(tmp_path, {"eos_token": "</s>"})).with_start([]) == [2]


def test_only_private_characters_become_special_tokens(tmp_path):
    backend = Backend(models.BPE({"a": 0, "b": 1, "ab": 2, "<": 3, "e": 4, ">": 5, "<e>": 6}, merges=[("a", "b")]))
    backend.add_special_tokens(["<e>"])
    control = Tokenizer.load(save(tmp_path, {"eos_token": "<e>"}, backend)).control_tokens
    assert control.encode("ab") == [2]
    assert control.encode(f"{control.spellings['<e>']}ab<e>{control.spellings['<e>']}") == [6, 2, 3, 4, 5, 6]
    assert control.encode("") == []
    with pytest.raises(UserError, match=r"private character U\+10FFFD"):
        control.checked(chr(0x10FFFD))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("eos_token", 7, "eos_token must be a token"),
        ("eos_token", {"id": 2}, "eos_token must be a token"),
        ("eos_token", "x" * 10_000_000, "eos_token must be a token"),
        ("eos_token", "</t>", "eos_token of the tokenizer is '</t>', which is not among its tokens"),
        ("end_tokens", "</s>", "end_tokens must be a list"),
        ("end_tokens", ["<nope>"], r"end_tokens\[0\] of the tokenizer is '<nope>'"),
        ("end_tokens", [None], "end_tokens must be a token"),
        ("padding_side", "top", "padding_side must be left or right"),
        ("model_max_length", "long", "model_max_length must be a positive number"),
        ("model_max_length", float("nan"), "model_max_length must be a positive number"),
        ("model_max_length", True, "model_max_length must be a positive number"),
        ("add_bos_token", "yes", "add_bos_token must be true or false"),
        ("chat_template", 3, "chat_template must be a Jinja template"),
        ("chat_template", "x" * 2_000_000, "chat_template must be a Jinja template"),
    ],
)
def test_odd_values_are_named_in_one_line(tmp_path, key, value, message):
    path = save(tmp_path, CONFIG | {key: value})
    with pytest.raises(UserError, match=message) as caught:
        Tokenizer.load(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("content", ["", "[]", '{"eos_token": ', "null", '{"a":' * 100_000])
def test_a_damaged_file_is_named(tmp_path, content):
    path = save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(UserError, match=r"tokenizer_config\.json"):
        Tokenizer.load(path)


def test_values_survive_json():
    tokens = SpecialTokens.from_json(CONFIG | {"add_bos_token": True, "padding_side": "left"}, "name")
    assert SpecialTokens.from_json(json.loads(json.dumps(tokens.to_json())), "name") == tokens
