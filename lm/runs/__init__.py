"""A run on disk: work directory, config, checkpoints, results, transfer."""
