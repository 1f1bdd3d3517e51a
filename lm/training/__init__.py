"""From a task and batches to a trained model in a work directory."""
