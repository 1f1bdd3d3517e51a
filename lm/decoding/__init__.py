"""Text generation, one token at a time, with log-probabilities."""
