"""Calibration: how far confidence is from the truth, how sure of that one can be, and how to mend it."""
