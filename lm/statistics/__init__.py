"""Metrics and their uncertainty: intervals, resampling, paired tests."""
