"""Logs of other evaluation tools as predictions."""
