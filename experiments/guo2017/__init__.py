"""Table 1 of Guo et al. (2017), its text rows: networks, training and the table."""
