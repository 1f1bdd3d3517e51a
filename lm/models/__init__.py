"""Whole models, their shapes and their costs."""
