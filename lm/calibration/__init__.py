"""Calibration: errors and their uncertainty, calibrators, conformal sets, selective prediction."""
