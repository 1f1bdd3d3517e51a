"""Running statistics that merge by addition, and the statistics of predicted tokens."""
