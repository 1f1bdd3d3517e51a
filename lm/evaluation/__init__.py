"""Metrics of predictions: tokens, classes, tags, spans and generated texts."""
