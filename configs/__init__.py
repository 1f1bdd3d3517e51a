"""One file per run; each says how to start it and what to expect."""
