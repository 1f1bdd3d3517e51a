"""Activations by the names that published configs give them."""

from lm.modules.config import ModelConfig

# From the names in config.json to ours, of feed-forward layers with two matrices. The first of equal ones is written.
PLAIN = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
# Of gated layers, with a third matrix.
GATED = {
    "silu": "swiglu",
    "swish": "swiglu",
    "gelu_new": "gated_gelu",
    "gelu_pytorch_tanh": "gated_gelu",
    "gelu": "gated_gelu_exact",
}


def published_name(config: ModelConfig, names: dict[str, str]) -> str:
    """The name in config.json of the activation of a shape.

    Raises:
      KeyError: if there is none among the names.
    """
    for published, ours in names.items():
        if ours == config.activation:
            return published
    raise KeyError(config.activation)
