"""Activations of feed-forward layers, by the names that published configs give them."""

from collections.abc import Mapping

from lm.modules.config import ModelConfig

# Of layers with two matrices. Where several names mean the same, the first is written.
PLAIN_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
# Of gated layers, with three matrices.
GATED_ACTIVATIONS = {
    "silu": "swiglu",
    "swish": "swiglu",
    "gelu_pytorch_tanh": "gated_gelu",
    "gelu_new": "gated_gelu",
    "gelu": "gated_gelu_exact",
}


def published_name(config: ModelConfig, names: Mapping[str, str]) -> str:
    """The name in config.json of a shape's activation.

    Args:
      config: the shape.
      names: from theirs to ours.

    Raises:
      KeyError: if it is not among them.
    """
    for published, ours in names.items():
        if ours == config.activation:
            return published
    raise KeyError(config.activation)
