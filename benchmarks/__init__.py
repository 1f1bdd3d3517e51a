"""Measured against the best there is, side by side in one run."""
