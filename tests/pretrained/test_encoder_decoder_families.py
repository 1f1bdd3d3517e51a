"""Encoder-decoders of every family: what transformers saves is read, computes the same, decodes, and is written back.

Axes: B texts, S input positions, T output positions, V vocabulary.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.pretrained.families import published_form
from lm.pretrained.parameters import published_tensors
from lm.pretrained.tensors import open_tensors, write_safetensors
from tests.pretrained.encoder_cases import ENCODER_DECODERS, UNTIED
from tests.pretrained.published_cases import VOCAB
from tests.pretrained.reading import QUICKLY, read, saved, two_devices

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-5  # of the largest output
RANDOM = np.random.default_rng(0)
SEGMENTS_BS = (np.arange(21)[None] < np.array([[21], [9], [2]])).astype(np.int32)
INPUTS_BS = RANDOM.integers(3, VOCAB, size=SEGMENTS_BS.shape).astype(np.int32)
TOKENS_BT = RANDOM.integers(VOCAB, size=(3, 13)).astype(np.int32)

# The others have nothing that these have not, but for names. Compiling is slow.
QUICK = ("t5 1.0", "bart")
of_quick_ones = pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=() if case.name in QUICK else pytest.mark.slow)
        for case in ENCODER_DECODERS
    ],
)


def logits(model, params, compiled=False):
    # Step by step, all models share what is compiled.
    apply = jax.jit(model.apply, compiler_options=QUICKLY) if compiled else model.apply
    return np.asarray(apply({"params": params}, INPUTS_BS, TOKENS_BT, SEGMENTS_BS), np.float32)


def their_logits(reference):
    inputs, mask, tokens = (torch.from_numpy(array.astype(np.int64)) for array in (INPUTS_BS, SEGMENTS_BS, TOKENS_BT))
    with torch.no_grad():
        return reference(inputs, attention_mask=mask, decoder_input_ids=tokens).logits.numpy()


def difference(ours_BTV, theirs_BTV):
    """The largest, relative to the largest output."""
    return np.abs(ours_BTV - theirs_BTV).max() / np.abs(theirs_BTV).max()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("published")


@of_quick_ones
class TestEncoderDecoders:
    def test_computes_the_same(self, case, folder):
        reference, path = saved(case, folder)
        found, theirs = read(path), their_logits(reference)
        assert found.model.config.tie_embeddings == (case.name not in UNTIED)
        assert difference(logits(found.model, found.params), theirs) < TOLERANCE
        for change in case.without:
            other = read(path, **change)
            assert difference(logits(other.model, other.params), theirs) > 10 * TOLERANCE, f"{change} changes nothing"

    def test_computes_the_same_with_scanned_layers_on_two_devices_by_other_attention(self, case, folder):
        reference, path = saved(case, folder)
        # Layers are scanned on each side, however many it has.
        found = read(path, mesh=two_devices(), scan_layers=True, attention="xla", attention_dropout=0.0)
        assert difference(logits(found.model, found.params, compiled=True), their_logits(reference)) < TOLERANCE

    def test_decodes_from_a_cache_at_other_places_in_each_row(self, case, folder):
        reference, path = saved(case, folder)
        found, theirs_BTV = read(path), their_logits(reference)
        apply = functools.partial(found.model.apply, {"params": found.params})
        batch, length = TOKENS_BT.shape
        memory_BSD = apply(INPUTS_BS, SEGMENTS_BS, method="encode")
        caches = apply(memory_BSD, SEGMENTS_BS, length, method="start_decoding")

        @functools.partial(jax.jit, compiler_options=QUICKLY)
        def step(tokens_BT, positions_BT, caches):
            hidden_BTD, caches = apply(tokens_BT, positions_BT, caches, method="decode_with_cache")
            return apply(hidden_BTD, method="logits"), caches

        ours_BTV, caches = step(TOKENS_BT[:, :5], jnp.broadcast_to(jnp.arange(5), (batch, 5)), caches)
        worst = difference(ours_BTV, theirs_BTV[:, :5])
        # Each row goes on after its own number of tokens; what the cache holds beyond that is overwritten.
        for number in range(8):
            places_B1 = np.array([[5], [2], [1]]) + number
            tokens_B1 = np.take_along_axis(TOKENS_BT, places_B1, axis=1)
            ours_B1V, caches = step(tokens_B1, places_B1, caches)
            theirs_B1V = np.take_along_axis(theirs_BTV, places_B1[:, :, None], axis=1)
            worst = max(worst, np.abs(ours_B1V - theirs_B1V).max() / np.abs(theirs_BTV).max())
        assert worst < TOLERANCE

    def test_is_written_back_bit_for_bit(self, case, folder, tmp_path):
        _, path = saved(case, folder)
        for scan_layers in (False, True):
            found = read(path, scan_layers=scan_layers)
            target = tmp_path / str(scan_layers)
            target.mkdir()
            tensors = published_tensors(found.family, found.model.config, found.parts, found.params)
            write_safetensors(target, tensors)
            before, after = open_tensors(path), open_tensors(target)
            # Copies of the embedding that transformers does not need are left out.
            left_out = set(before.shapes) - set(after.shapes)
            assert left_out <= set(found.family.copies)
            for name in after.shapes:
                assert before.read(name).tobytes() == after.read(name).tobytes(), name

    def test_transformers_reads_what_is_written_and_agrees(self, case, folder, tmp_path):
        reference, path = saved(case, folder)
        found = read(path)
        family, values = published_form(found.model.config, found.parts)
        assert family is found.family
        write_safetensors(tmp_path, published_tensors(family, found.model.config, found.parts, found.params))
        (tmp_path / "config.json").write_text(json.dumps(values))
        kind = getattr(transformers, values["architectures"][0])
        again, notes = kind.from_pretrained(tmp_path, output_loading_info=True, attn_implementation="eager")
        assert not notes["missing_keys"]
        assert not notes["unexpected_keys"]
        np.testing.assert_allclose(their_logits(again.eval()), their_logits(reference), atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("case", [ENCODER_DECODERS[0], ENCODER_DECODERS[3]], ids=lambda case: case.name)
def test_16_bit_weights_stay_as_they_are_and_compute_nearly_the_same(case, folder, tmp_path):
    reference, path = saved(case, folder)
    kind = type(reference)
    again = kind.from_pretrained(path, dtype=torch.bfloat16, attn_implementation="eager")
    again.save_pretrained(tmp_path / "theirs")
    found = read(tmp_path / "theirs", dtype="bfloat16", parameter_dtype="bfloat16")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(found.params)} == {"bfloat16"}
    (tmp_path / "ours").mkdir()
    write_safetensors(tmp_path / "ours", published_tensors(found.family, found.model.config, found.parts, found.params))
    before, after = open_tensors(tmp_path / "theirs"), open_tensors(tmp_path / "ours")
    for name in before.shapes:
        assert before.read(name).tobytes() == after.read(name).tobytes(), name
    assert difference(logits(found.model, found.params), their_logits(again.to(torch.float32))) < 0.1
