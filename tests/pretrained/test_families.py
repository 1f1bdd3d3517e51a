"""Models of every family: what transformers saves is read, computes the same, and is written back bit for bit.

Axes: B texts, T positions, V vocabulary.
"""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.errors import UserError
from lm.models.build import make_language_model
from lm.models.sharding import tree_shardings
from lm.modules.stack import empty_caches
from lm.pretrained.families import family_of_published, published_form
from lm.pretrained.parameters import parts_present, published_tensors, read_parameters
from lm.pretrained.published_config import PublishedConfig
from lm.pretrained.tensors import open_tensors, write_safetensors
from tests.pretrained.published_cases import DECODERS, VOCAB, build

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-5  # of the largest output
LENGTHS = (21, 9, 2)
TOKENS_BT = np.random.default_rng(0).integers(VOCAB, size=(3, 21)).astype(np.int32)


@functools.cache
def saved(case, folder):
    """A published model, saved by transformers."""
    reference = build(case, transformers, torch)
    path = folder / case.name
    reference.save_pretrained(path)
    return reference, path


def read(path, scan_layers=False, mesh=None, **changes):
    published = PublishedConfig(json.loads((path / "config.json").read_text()), str(path / "config.json"))
    family = family_of_published(published)
    config = dataclasses.replace(family.to_ours(published), scan_layers=scan_layers)
    tensors = open_tensors(path)
    parts = parts_present(family, config, tensors)
    model = make_language_model(config, mesh)
    like = shapes(model, mesh)
    return (
        family,
        make_language_model(dataclasses.replace(config, **changes), mesh),
        parts,
        read_parameters(family, config, parts, tensors, like),
    )


def shapes(model, mesh=None):
    like = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))["params"]
    where = jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), like)
    if mesh is not None:
        where = tree_shardings(like, mesh)
    return jax.tree.map(lambda x, y: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=y), like, where)


def segments():
    return (np.arange(TOKENS_BT.shape[1])[None] < np.array(LENGTHS)[:, None]).astype(np.int32)


def logits(model, params):
    return np.asarray(jax.jit(model.apply)({"params": params}, TOKENS_BT, segments()))


def their_logits(reference):
    with torch.no_grad():
        mask = torch.from_numpy(segments().astype(np.int64))
        return reference(torch.from_numpy(TOKENS_BT.astype(np.int64)), attention_mask=mask).logits.numpy()


def difference(ours_BTV, theirs_BTV):
    """The largest, relative to the largest output, where there is text."""
    counted = segments() > 0
    return np.abs(ours_BTV - theirs_BTV)[counted].max() / np.abs(theirs_BTV[counted]).max()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("published")


@pytest.mark.parametrize("case", DECODERS, ids=lambda case: case.name)
class TestDecoders:
    def test_computes_the_same(self, case, folder):
        reference, path = saved(case, folder)
        _, model, _, params = read(path)
        theirs = their_logits(reference)
        assert difference(logits(model, params), theirs) < TOLERANCE
        for change in case.without:
            _, other, _, _ = read(path, **change)
            assert difference(logits(other, params), theirs) > 10 * TOLERANCE, f"{change} makes no difference"

    def test_computes_the_same_with_scanned_layers_and_on_two_devices(self, case, folder):
        reference, path = saved(case, folder)
        axes = ("data", "fsdp", "tensor")
        mesh = jax.make_mesh((1, 1, 2), axes, (jax.sharding.AxisType.Auto,) * 3, devices=jax.devices()[:2])
        theirs = their_logits(reference)
        for settings in ({"scan_layers": True}, {"mesh": mesh}):
            _, model, _, params = read(path, **settings)
            assert difference(logits(model, params), theirs) < TOLERANCE

    def test_decodes_ragged_prompts_from_a_cache(self, case, folder):
        reference, path = saved(case, folder)
        _, model, _, params = read(path)
        batch, length = TOKENS_BT.shape
        caches = empty_caches(model.config, batch, length)
        step = jax.jit(functools.partial(model.apply, method="hidden_with_cache"))
        prompts_B = np.array([7, 4, 1])
        # All prompts in one array; then each row goes on from its own end.
        positions_BT = np.broadcast_to(np.arange(7), (batch, 7))
        hidden_BTD, caches = step({"params": params}, TOKENS_BT[:, :7], positions_BT, caches)
        theirs = their_logits(reference)
        found = np.zeros_like(theirs)
        found[:, :7] = model.apply({"params": params}, hidden_BTD, method="logits")
        for number in range(8):
            places_B1 = np.minimum(prompts_B + number, np.array(LENGTHS) - 1)[:, None]
            tokens_B1 = np.take_along_axis(TOKENS_BT, places_B1, axis=1)
            hidden_B1D, caches = step({"params": params}, tokens_B1, places_B1, caches)
            found[np.arange(batch)[:, None], places_B1] = model.apply({"params": params}, hidden_B1D, method="logits")
        reached = np.arange(length)[None] < np.minimum(prompts_B + 8, LENGTHS)[:, None]
        error = np.abs(found - theirs)[reached].max() / np.abs(theirs[segments() > 0]).max()
        assert error < TOLERANCE

    def test_is_written_back_bit_for_bit(self, case, folder, tmp_path):
        reference, path = saved(case, folder)
        family, model, parts, params = read(path)
        found, values = published_form(model.config, parts, family.model_types[0])
        assert found is family
        write_safetensors(tmp_path, published_tensors(family, model.config, parts, params))
        before, after = open_tensors(path), open_tensors(tmp_path)
        assert set(after.shapes) == set(before.shapes)
        for name in before.shapes:
            assert before.read(name).tobytes() == after.read(name).tobytes(), name
        (tmp_path / "config.json").write_text(json.dumps(values))
        load = getattr(transformers, case.model).from_pretrained
        again, notes = load(tmp_path, attn_implementation="eager", output_loading_info=True)
        assert not notes["missing_keys"]
        assert not notes["unexpected_keys"]
        assert difference(their_logits(again.eval()), their_logits(reference)) < TOLERANCE


def test_an_unknown_family_is_refused():
    with pytest.raises(UserError, match=r"model_type='nothing' is not known: known are .*gpt2, .*llama"):
        family_of_published(PublishedConfig({"model_type": "nothing"}, "config.json"))
