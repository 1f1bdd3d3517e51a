"""Published weights: their files, their names of tensors, and what they say about the model."""
