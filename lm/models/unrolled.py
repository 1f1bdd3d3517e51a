"""A model whose layers are compiled one by one, made from one that loops over stacked layers.

A step of decoding does little work in each layer: in a loop it would spend its time on slices of the parameters and of
the cache.
"""

import dataclasses
from typing import TypeVar

import jax

from lm.models.decoder_lm import DecoderLM
from lm.models.encoder_decoder_lm import EncoderDecoderLM
from lm.types import Params

Model = TypeVar("Model", DecoderLM, EncoderDecoderLM)

_STACKS = ("encoder", "decoder")


def unrolled(model: Model, params: Params) -> tuple[Model, Params]:
    """The same model without `scan_layers`, and its parameters: a copy of the layers'.

    Args:
      model: the network; returned unchanged if it has no `scan_layers`.
      params: its parameters, whose stacked layers have a leading axis L.
    """
    if not model.config.scan_layers:
        return model, params
    model = model.clone(config=dataclasses.replace(model.config, scan_layers=False))
    return model, {name: _unstacked(tree) if name in _STACKS else tree for name, tree in params.items()}


def _unstacked(stack: Params) -> Params:
    """The parameters of a stack, by layer."""
    layers = stack["layers"]
    count = jax.tree.leaves(layers)[0].shape[0]
    others = {name: tree for name, tree in stack.items() if name != "layers"}
    return others | {f"layer_{n}": jax.tree.map(lambda array, n=n: array[n], layers) for n in range(count)}
