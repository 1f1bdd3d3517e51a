"""Text out of a model, one token at a time, with what the model thought of each."""
