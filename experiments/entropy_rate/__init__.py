"""Entropy-rate drift of a ladder of language models (Braverman et al. 2020)."""
