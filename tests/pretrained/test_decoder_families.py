"""Decoders of every family: what transformers saves is read, computes the same, and is written back bit for bit.

Axes: B texts, T positions, V vocabulary.
"""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from lm.errors import UserError
from lm.modules.stack import empty_caches
from lm.pretrained import decoders
from lm.pretrained.families import family_of_published, published_form
from lm.pretrained.parameters import dropped_weights, published_tensors
from lm.pretrained.published_config import PublishedConfig
from lm.pretrained.tensors import open_tensors, write_safetensors
from tests.pretrained.published_cases import DECODERS, VOCAB
from tests.pretrained.reading import read, saved, two_devices

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-5  # of the largest output
LENGTHS_B = np.array([21, 9, 2])
SEGMENTS_BT = (np.arange(21)[None] < LENGTHS_B[:, None]).astype(np.int32)
TOKENS_BT = np.random.default_rng(0).integers(VOCAB, size=SEGMENTS_BT.shape).astype(np.int32)

# It has nearly everything that a layer can have. Compiling is slow.
QUICK = ("gemma3",)
of_all = pytest.mark.parametrize("case", DECODERS, ids=lambda case: case.name)
of_quick_ones = pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.name, marks=() if case.name in QUICK else pytest.mark.slow) for case in DECODERS],
)


def case_named(name):
    return next(case for case in DECODERS if case.name == name)


@functools.cache
def read_once(path):
    """As transformers saved it, for tests that don't change what was read."""
    return read(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("published")


def logits(model, params):
    return np.asarray(model.apply({"params": params}, TOKENS_BT, SEGMENTS_BT))


def their_logits(reference):
    with torch.no_grad():
        mask_BT = torch.from_numpy(SEGMENTS_BT.astype(np.int64))
        found = reference(torch.from_numpy(TOKENS_BT.astype(np.int64)), attention_mask=mask_BT)
        return found.logits.float().numpy()


def difference(ours_BTV, theirs_BTV, where_BT=SEGMENTS_BT > 0):
    """The largest, relative to the largest output, where there is text."""
    return np.abs(ours_BTV - theirs_BTV)[where_BT].max() / np.abs(theirs_BTV[SEGMENTS_BT > 0]).max()


@of_all
def test_computes_the_same(case, folder):
    reference, path = saved(case, folder)
    theirs = their_logits(reference)
    found = read_once(path)
    assert difference(logits(found.model, found.params), theirs) < TOLERANCE
    for change in case.without:
        other = found.model.clone(config=dataclasses.replace(found.model.config, **change))
        differs = difference(logits(other, found.params), theirs)
        assert differs > 10 * TOLERANCE, f"{change} makes no difference"


@of_quick_ones
def test_computes_the_same_with_scanned_layers_on_two_devices(case, folder):
    reference, path = saved(case, folder)
    found = read(path, scan_layers=True, mesh=two_devices())
    ours = jax.jit(found.model.apply)({"params": found.params}, TOKENS_BT, SEGMENTS_BT)
    assert difference(np.asarray(ours), their_logits(reference)) < TOLERANCE


@of_quick_ones
def test_decodes_ragged_prompts_from_a_cache(case, folder):
    reference, path = saved(case, folder)
    found = read_once(path)
    step = jax.jit(functools.partial(decode, found.model))
    caches = empty_caches(found.model.config, *TOKENS_BT.shape)
    ours, reached_BT = np.zeros((*TOKENS_BT.shape, VOCAB)), np.zeros(TOKENS_BT.shape, bool)
    # First the beginnings of all texts; then each goes on from where its prompt ends, and overwrites what is after it.
    for start_B in (np.zeros(3, int), *(np.array([4, 2, 1]) + more for more in (0, 4, 8, 12))):
        positions_BT = np.minimum(start_B[:, None] + np.arange(4), TOKENS_BT.shape[1] - 1)
        tokens_BT = np.take_along_axis(TOKENS_BT, positions_BT, axis=1)
        logits_BTV, caches = step(found.params, tokens_BT, positions_BT, caches)
        ours[np.arange(3)[:, None], positions_BT] = logits_BTV
        reached_BT[np.arange(3)[:, None], positions_BT] = True
    reached_BT &= SEGMENTS_BT > 0
    assert reached_BT.sum() > 25
    assert difference(ours, their_logits(reference), reached_BT) < TOLERANCE


def decode(model, params, tokens_BT, positions_BT, caches):
    arguments = (tokens_BT, positions_BT, caches)
    hidden_BTD, caches = model.apply({"params": params}, *arguments, method="hidden_with_cache")
    return model.apply({"params": params}, hidden_BTD, method="logits"), caches


@of_all
def test_is_written_back_bit_for_bit_and_transformers_agrees(case, folder, tmp_path):
    reference, path = saved(case, folder)
    found = read_once(path)
    family, values = published_form(found.model.config, found.parts, model_type=found.family.model_types[0])
    assert family is found.family
    write_safetensors(tmp_path, published_tensors(family, found.model.config, found.parts, found.params))
    assert_same_tensors(path, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(values))
    load = getattr(transformers, values["architectures"][0]).from_pretrained
    again, notes = load(tmp_path, attn_implementation="eager", output_loading_info=True)
    assert not notes["missing_keys"]
    assert not notes["unexpected_keys"]
    assert difference(their_logits(again.eval()), their_logits(reference)) < TOLERANCE


def assert_same_tensors(first, second):
    before, after = open_tensors(first), open_tensors(second)
    assert set(after.shapes) == set(before.shapes)
    for name in before.shapes:
        assert before.read(name).tobytes() == after.read(name).tobytes(), name


@pytest.mark.parametrize("name", ["llama3", "gemma2"])
def test_16_bit_weights_stay_as_they_are_and_compute_nearly_the_same(name, folder, tmp_path):
    reference, _ = saved(case_named(name), tmp_path)
    path = tmp_path / "16-bit"
    reference.to(torch.bfloat16).save_pretrained(path)
    found = read(path, dtype="bfloat16", parameter_dtype="bfloat16")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(found.params)} == {"bfloat16"}
    target = tmp_path / "written"
    target.mkdir()
    write_safetensors(target, published_tensors(found.family, found.model.config, found.parts, found.params))
    assert_same_tensors(path, target)
    theirs = their_logits(reference.to(torch.float32))
    ours = logits(found.model, found.params)
    assert ours.dtype == np.float32
    assert difference(ours, theirs) < 0.05


@pytest.mark.parametrize("name", ["llama3", "gemma3"])
def test_other_attention_computes_the_same(name, folder):
    _, path = saved(case_named(name), folder)
    found = read_once(path)
    other = found.model.clone(config=dataclasses.replace(found.model.config, attention="xla", attention_dropout=0.0))
    ours = logits(found.model, found.params)
    assert difference(logits(other, found.params), ours) < TOLERANCE


def test_an_output_matrix_beside_tied_embeddings_counts_if_it_differs(folder, tmp_path):
    _, path = saved(case_named("llama3"), folder)
    embedding = open_tensors(path).read("model.embed_tokens.weight")
    for added, is_tied in ((embedding, True), (embedding[::-1], False)):
        target = tmp_path / str(is_tied)
        changed_copy(path, target, add={"lm_head.weight": added})
        found = read(target)
        assert found.model.config.tie_embeddings == is_tied
        reference = transformers.LlamaForCausalLM.from_pretrained(target, attn_implementation="eager")
        assert difference(logits(found.model, found.params), their_logits(reference)) < TOLERANCE


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        ({"num_hidden_layers": 1}, {}, r"does not use.*model\.layers\.1\."),
        ({"num_hidden_layers": 3}, {}, r"lacks model\.layers\.2\.input_layernorm\.weight"),
        ({"vocab_size": 70}, {}, r"model\.embed_tokens\.weight is \(68, 32\), and config\.json says \(70, 32\)"),
        ({"num_key_value_heads": 4}, {}, r"k_proj\.weight is \(24, 32\), and config\.json says \(48, 32\)"),
        ({}, {"add": {"model.layers.0.extra": np.zeros(3)}}, r"does not use.*: model\.layers\.0\.extra"),
        ({}, {"leave_out": "model.norm.weight"}, r"lacks model\.norm\.weight"),
    ],
)
def test_weights_that_do_not_fit_are_named(config, tensors, message, folder, tmp_path):
    _, path = saved(case_named("llama3"), folder)
    changed_copy(path, tmp_path / "changed", config, **tensors)
    with pytest.raises(UserError, match=message):
        read(tmp_path / "changed")


def changed_copy(path, target, config=None, add=None, leave_out=None):
    """A saved model with other values in its config.json, a tensor more or a tensor less."""
    target.mkdir()
    tensors = open_tensors(path)
    arrays = {name: tensors.read(name) for name in tensors.shapes if name != leave_out}
    write_safetensors(target, (arrays | (add or {})).items())
    values = json.loads((path / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(values | (config or {})))


def test_the_text_part_of_a_gemma_that_also_reads_images(tmp_path):
    text = case_named("gemma3").config(transformers).to_dict()
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = sizes | {"image_size": 28, "patch_size": 14}
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    reference = transformers.Gemma3ForConditionalGeneration(config).eval()
    reference.save_pretrained(tmp_path / "whole")
    found = read(tmp_path / "whole")
    assert difference(logits(found.model, found.params), their_logits(reference)) < TOLERANCE
    assert len(dropped_weights(found.family, open_tensors(tmp_path / "whole"))) > 10
    family, values = published_form(found.model.config, found.parts, model_type="gemma3")
    assert values["model_type"] == "gemma3_text"
    write_safetensors(tmp_path, published_tensors(family, found.model.config, found.parts, found.params))
    (tmp_path / "config.json").write_text(json.dumps(values))
    again = transformers.Gemma3ForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert difference(their_logits(again), their_logits(reference)) < TOLERANCE


def test_an_unknown_family_is_refused():
    with pytest.raises(UserError, match=r"model_type='nothing' is not known: known are .*gpt2, .*llama"):
        family_of_published(PublishedConfig({"model_type": "nothing"}, "config.json"))


def test_every_family_of_decoders_has_a_case():
    kinds = {case.config(transformers).model_type for case in DECODERS}
    assert {kind for family in decoders.DECODERS for kind in family.model_types} == kinds | {"gemma3"}
