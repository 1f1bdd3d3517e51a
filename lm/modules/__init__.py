"""Flax layers and stacks."""
