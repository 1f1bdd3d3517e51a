"""Calibrated LM: language models that know what they know, in JAX and Flax."""

__version__ = "0.1.0"
