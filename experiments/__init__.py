"""One runnable file a job."""
