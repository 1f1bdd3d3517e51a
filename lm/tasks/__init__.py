"""Tasks with labelled rows, one file each."""
