"""A model in use: predict, generate, log-probabilities, with or without a calibrator."""
