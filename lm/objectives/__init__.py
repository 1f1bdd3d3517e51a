"""Pretraining objectives on text, one file each."""
