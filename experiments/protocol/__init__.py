"""How much the protocol decides which calibration of a prompted model looks best: settings, scores and tables."""
