"""Figures and how sure of them one can be: intervals, resampling, paired tests."""
