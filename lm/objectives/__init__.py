"""What is learned from text: one file an objective."""
