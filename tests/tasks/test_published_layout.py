"""Published tokenizers in tasks: the ids and token types of transformers, and where targets start and end."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.data.frames import Frame
from lm.data.published_backends import set_frame
from lm.data.published_tokenizers import read_tokenizer
from lm.data.special_tokens import SpecialTokens
from lm.data.tokenizers import Tokenizer
from lm.decoding.beam_search import BeamSearchConfig
from lm.models.decoder_lm import DecoderLM
from lm.models.encoder_decoder_lm import EncoderDecoderLM
from lm.modules.config import ModelConfig
from lm.tasks.target_models import target_model
from lm.tasks.text_encoding import Layout
from tests.data.published_files import make_backend, make_bert, make_gpt2, make_llama, make_roberta, make_t5

PAIR = ("the film is good", "a story of war")


@pytest.mark.parametrize("make", [make_bert, make_roberta, make_t5, make_llama, make_gpt2])
def test_texts_and_pairs_have_the_ids_of_transformers(make, tmp_path):
    transformers = pytest.importorskip("transformers")
    make(tmp_path)
    theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path), read_tokenizer(tmp_path)
    layout = Layout.of(ours, "decoder" if make in (make_llama, make_gpt2) else "encoder")
    first, second = ours.encode_batch(PAIR)
    for arguments, example in (((PAIR[0],), layout.join(first)), (PAIR, layout.join(first, second))):
        expected = theirs(*arguments)
        assert example["tokens"].tolist() == expected["input_ids"]
        if "token_type_ids" in expected:
            assert example["types"].tolist() == expected["token_type_ids"]


def make(frame=None, **settings):
    backend = make_backend()
    if frame is not None:
        set_frame(backend, frame)
    roles = {"bos": "<s>", "eos": "</s>", "pad": "<pad>"}
    return Tokenizer(backend, published=SpecialTokens(roles, **settings))


def test_an_empty_text_is_the_first_token():
    layout = Layout.of(make(), "decoder")
    assert layout.join([])["tokens"].tolist() == [1]
    assert layout.join([], [])["tokens"].tolist() == [1]
    assert layout.join([], [6])["tokens"].tolist() == [6]


def test_an_encoder_without_a_frame_gets_the_usual_one():
    layout = Layout.of(make(), "encoder")
    assert layout.join([6], [7])["tokens"].tolist() == [1, 6, 2, 7, 2]


def test_token_types_begin_where_the_frame_says():
    layout = Layout.of(make(Frame((1,), (2, 1), (2,), between_second=1)), "encoder")
    assert layout.join([6], [7])["types"].tolist() == [0, 0, 0, 1, 1, 1]
    assert layout.room(ModelConfig(architecture="encoder", max_length=8), pair=True) == 4


def test_an_encoder_decoder_starts_where_the_tokenizer_says():
    model = EncoderDecoderLM(ModelConfig(architecture="encoder_decoder", vocab_size=9, max_length=8))
    frame = Frame((1,), (2, 2), (2,), second_type=0)
    targets = target_model(model, make(frame, start_of_output_token="<pad>"))
    example = targets.example([6], targets.target([7, 8]))
    assert example["inputs"].tolist() == [1, 6, 2]
    assert example["tokens"].tolist() == [3, 1, 7, 8]
    assert example["targets"].tolist() == [1, 7, 8, 2]
    assert targets.source_room(4) == 6


@pytest.mark.parametrize(("separate", "between"), [(True, [2]), (False, [])])
def test_a_decoder_reads_what_the_tokenizer_puts_first(separate, between):
    model = DecoderLM(ModelConfig(vocab_size=9, max_length=8))
    targets = target_model(model, make(add_bos=True), separate)
    assert targets.prompt([6]) == [1, 6, *between]
    assert targets.target([7]) == [7, 2]
    plain = target_model(model, make(), separate)
    assert plain.prompt([6]) == [6, *between]
    example = plain.example([], plain.target([7]))
    assert example["targets"].tolist() == [*between, 7, 2]
    np.testing.assert_array_equal(example["weights"][-2:], 1)
    longest = plain.target_room(3)
    assert len(plain.example([6] * 3, [7] * longest)["tokens"]) <= 8
    assert len(plain.example([], [7] * plain.target_room(0))["tokens"]) <= 8


@pytest.mark.parametrize("architecture", ["decoder", "encoder_decoder"])
@pytest.mark.parametrize(("end_tokens", "length"), [((), 3), (("b",), 1)])
def test_what_a_model_writes_ends_at_each_end_token(architecture, end_tokens, length):
    tokenizer = make(end_tokens=end_tokens)
    config = ModelConfig(architecture, vocab_size=9, layers=1, width=8, heads=2, max_length=8, output_bias=True)
    model = DecoderLM(config) if architecture == "decoder" else EncoderDecoderLM(config)
    targets = target_model(model, tokenizer)
    params = jax.jit(targets.init)(jax.random.key(0))
    likeliest = jax.nn.one_hot(tokenizer.vocabulary["b"], config.vocab_size)
    example = targets.example([6], targets.target([7]))
    batch = {name: jnp.asarray(array)[None] for name, array in example.items()} | {"row_weights": jnp.ones(1)}
    write = jax.jit(functools.partial(targets.generate, config=BeamSearchConfig(1, 3), vocab_size=9))
    written = write(params | {"output_bias": 100 * likeliest}, batch)
    assert written.lengths_B.tolist() == [length]
