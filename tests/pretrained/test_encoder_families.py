"""Encoders of every family: what transformers saves is read, computes the same, and is written back bit for bit.

Axes: B texts, T positions.
"""

import functools
import json

import jax
import numpy as np
import pytest

from lm.pretrained.families import published_form
from lm.pretrained.parameters import dropped_weights, published_tensors
from lm.pretrained.tensors import open_tensors, write_safetensors
from tests.pretrained.encoder_cases import ENCODERS
from tests.pretrained.published_cases import VOCAB
from tests.pretrained.reading import QUICKLY, read, saved, two_devices

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-5  # of the largest output
SEGMENTS_BT = (np.arange(21)[None] < np.array([[21], [9], [2]])).astype(np.int32)
# RoBERTa counts the tokens that are not padding, 1, to know positions.
TOKENS_BT = np.where(SEGMENTS_BT, np.random.default_rng(0).integers(3, VOCAB, size=SEGMENTS_BT.shape), 1)
TYPES_BT = np.where(np.arange(21)[None] < np.array([[8], [4], [1]]), 0, SEGMENTS_BT)

# The others have nothing that these have not, but for names. Compiling is slow.
QUICK = ("bert", "roberta", "electra small", "modernbert")
of_quick_ones = pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.name, marks=() if case.name in QUICK else pytest.mark.slow) for case in ENCODERS],
)


def outputs(model, params, parts, compiled=False):
    """What the model computes, by name. Step by step, all models share what is compiled."""
    types_BT = TYPES_BT if model.config.segment_types > 1 else None

    def compute(params):
        apply = functools.partial(model.apply, {"params": params})
        found = {"hidden": apply(TOKENS_BT, SEGMENTS_BT, None, types_BT, method="hidden")}
        if "prediction_head" in parts:
            found["logits"] = apply(found["hidden"], method="logits")
        if "pooler" in parts:
            found["pooled"] = apply(found["hidden"], SEGMENTS_BT, method="pool")
        if "next_sentence_head" in parts:
            found["next_sentence"] = apply(found["pooled"], method="next_sentence")
        return found

    return {
        name: np.asarray(array, np.float32)
        for name, array in (jax.jit(compute, compiler_options=QUICKLY) if compiled else compute)(params).items()
    }


def their_outputs(case, reference):
    inputs = {"input_ids": TOKENS_BT, "attention_mask": SEGMENTS_BT}
    if getattr(reference.config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = TYPES_BT
    with torch.no_grad():
        inputs = {name: torch.from_numpy(array.astype(np.int64)) for name, array in inputs.items()}
        body, whole = reference.base_model(**inputs), reference(**inputs)
    found = {
        "hidden": body.last_hidden_state,
        "logits": whole.get("prediction_logits", whole.get("logits")),
        "pooled": body.get("pooler_output"),
        "next_sentence": whole.get("seq_relationship_logits"),
    }
    if case.model == "ElectraForPreTraining":
        del found["logits"]  # of the head that is dropped
    return {name: array.numpy() for name, array in found.items() if array is not None}


def difference(ours, theirs):
    """The largest of all outputs, relative to the largest value of each, where there is text."""
    errors = []
    for name in ours:
        chosen = SEGMENTS_BT > 0 if name in ("hidden", "logits") else slice(None)
        errors.append(np.abs(ours[name] - theirs[name])[chosen].max() / np.abs(theirs[name][chosen]).max())
    return max(errors)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("published")


@of_quick_ones
class TestEncoders:
    def test_computes_the_same(self, case, folder):
        reference, path = saved(case, folder)
        found = read(path)
        theirs = their_outputs(case, reference)
        ours = outputs(found.model, found.params, found.parts)
        assert set(ours) == set(theirs)
        assert difference(ours, theirs) < TOLERANCE
        for change in case.without:
            other = read(path, **change)
            differs = difference(outputs(other.model, other.params, other.parts), theirs)
            assert differs > 10 * TOLERANCE, f"{change} makes no difference"

    def test_computes_the_same_with_scanned_layers_on_two_devices_by_other_attention(self, case, folder):
        reference, path = saved(case, folder)
        theirs = their_outputs(case, reference)
        found = read(path, mesh=two_devices(), scan_layers=True, attention="xla", attention_dropout=0.0)
        assert difference(outputs(found.model, found.params, found.parts, compiled=True), theirs) < TOLERANCE

    def test_is_written_back_bit_for_bit(self, case, folder, tmp_path):
        _, path = saved(case, folder)
        for scan_layers in (False, True):
            found = read(path, scan_layers=scan_layers)
            config, target = found.model.config, tmp_path / str(scan_layers)
            target.mkdir()
            write_safetensors(target, published_tensors(found.family, config, found.parts, found.params))
            before, after = open_tensors(path), open_tensors(target)
            dropped = dropped_weights(found.family, before)
            assert (len(dropped) > 0) == (case.model == "ElectraForPreTraining")
            # A body without heads has names without the prefix.
            kept = {name.removeprefix(found.family.prefix) for name in set(before.shapes) - set(dropped)}
            assert {name.removeprefix(found.family.prefix) for name in after.shapes} == kept
            for name in after.shapes:
                old = name if name in before.shapes else found.family.prefix + name
                assert before.read(old).tobytes() == after.read(name).tobytes(), name

    def test_transformers_reads_what_is_written_and_agrees(self, case, folder, tmp_path):
        reference, path = saved(case, folder)
        found = read(path)
        family, values = published_form(found.model.config, found.parts)
        write_safetensors(tmp_path, published_tensors(family, found.model.config, found.parts, found.params))
        (tmp_path / "config.json").write_text(json.dumps(values))
        kind = getattr(transformers, values["architectures"][0])
        again, notes = kind.from_pretrained(tmp_path, output_loading_info=True, attn_implementation="eager")
        # The class of a body without a pooler makes one all the same.
        assert all(name.startswith("pooler.") for name in notes["missing_keys"])
        assert not notes["unexpected_keys"]
        before, after = their_outputs(case, reference), their_outputs(case, again.eval())
        for name in before:
            np.testing.assert_allclose(after[name], before[name], atol=TOLERANCE)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bit_weights_stay_as_they_are_and_compute_nearly_the_same(dtype, folder, tmp_path):
    case = ENCODERS[0]
    reference, _ = saved(case, folder)
    reference.to(getattr(torch, dtype)).save_pretrained(tmp_path / "theirs")
    found = read(tmp_path / "theirs", dtype=dtype, parameter_dtype=dtype)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(found.params)} == {dtype}
    (tmp_path / "ours").mkdir()
    write_safetensors(tmp_path / "ours", published_tensors(found.family, found.model.config, found.parts, found.params))
    before, after = open_tensors(tmp_path / "theirs"), open_tensors(tmp_path / "ours")
    for name in before.shapes:
        assert before.read(name).tobytes() == after.read(name).tobytes(), name
    theirs = their_outputs(case, reference.to(torch.float32))
    assert difference(outputs(found.model, found.params, found.parts), theirs) < 0.1
