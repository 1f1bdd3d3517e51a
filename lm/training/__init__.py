"""Training: from a problem to a trained model in a work directory."""
