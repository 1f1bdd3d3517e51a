"""Confidence in whole answers: asking, what the answers mean, and the table."""
