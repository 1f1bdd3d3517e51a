"""One runnable file per job."""
