"""Published models in tests: made and saved by transformers, and read here."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp

from lm.models.build import make_language_model
from lm.models.sharding import tree_shardings
from lm.modules.config import EXECUTION
from lm.pretrained.families import family_of_published
from lm.pretrained.parameters import parts_present, read_parameters, shape_as_stored
from lm.pretrained.published_config import PublishedConfig
from lm.pretrained.tensors import open_tensors
from tests.pretrained.encoder_cases import UNTIED
from tests.pretrained.published_cases import build

# Options of `jax.jit`, under which tiny models compile in less than half the time.
QUICKLY = {"xla_backend_optimization_level": 0}


@functools.cache
def saved(case, folder):
    """The reference of a case and the directory that transformers saved it to."""
    import torch
    import transformers

    reference = build(case, transformers, torch)
    if case.name in UNTIED:
        _untie(reference, torch)
    path = folder / case.name
    reference.save_pretrained(path)
    return reference, path


def _untie(reference, torch):
    """Gives an encoder-decoder an output matrix of its own, and one embedding for both sides."""
    shared = getattr(reference, "model", reference).shared.weight
    reference.lm_head.weight = torch.nn.Parameter(shared.detach().flip(0) + 0.1)
    for side in (reference.get_encoder(), reference.get_decoder()):
        side.embed_tokens.weight = torch.nn.Parameter(shared.detach().clone())


@dataclasses.dataclass
class Read:
    """What was read: the family, the model, its parts and its parameters."""

    family: object
    model: object
    parts: tuple[str, ...]
    params: object


def read(path, mesh=None, scan_layers=False, **changes):
    """Reads a directory as the shape that it says, into a model of the shape with changes."""
    published = PublishedConfig(json.loads((path / "config.json").read_text()), str(path / "config.json"))
    family, tensors = family_of_published(published), open_tensors(path)
    config = shape_as_stored(family, family.to_ours(published), tensors)
    execution = {name: value for name, value in changes.items() if name in EXECUTION}
    config = dataclasses.replace(config, scan_layers=scan_layers, **execution)
    parts = parts_present(family, config, tensors)
    like = shapes(make_language_model(config, mesh), parts, mesh)
    params = read_parameters(family, config, parts, tensors, like)
    return Read(family, make_language_model(dataclasses.replace(config, **changes), mesh), parts, params)


def shapes(model, parts, mesh=None):
    """The parameters of a model with these parts, and where each one goes, without values."""

    def everything(model, *tokens):
        if model.config.architecture != "encoder":
            return model(*tokens)
        hidden = model.hidden(*tokens)
        pooled = model.pool(hidden) if "pooler" in parts else None
        return (
            model.logits(hidden) if "prediction_head" in parts else None,
            model.next_sentence(pooled) if "next_sentence_head" in parts else None,
        )

    token_11 = jnp.zeros((1, 1), jnp.int32)
    tokens = (token_11,) * (2 if model.config.architecture == "encoder_decoder" else 1)
    like = jax.eval_shape(lambda: model.init(jax.random.key(0), *tokens, method=everything))["params"]
    if mesh is None:
        where = jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), like)
    else:
        where = tree_shardings(like, mesh)
    return jax.tree.map(lambda x, y: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=y), like, where)


def two_devices():
    """A mesh that splits matrices over two devices."""
    axes = ("data", "fsdp", "tensor")
    return jax.make_mesh((1, 1, 2), axes, (jax.sharding.AxisType.Auto,) * 3, devices=jax.devices()[:2])
