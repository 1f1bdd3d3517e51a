"""Calibrated LM: language models that know what they know, in JAX and Flax.

model = lm.load("runs/sst2", calibrator="temperature")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm.inference.load import load

__version__ = "0.1.0"
__all__ = ["load"]


def __getattr__(name: str) -> Any:
    # `import lm` alone must stay cheap: rooms below `lm.inference` import it too.
    if name != "load":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lm.inference.load import load

    return load
