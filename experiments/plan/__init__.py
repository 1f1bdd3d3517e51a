"""What a run will need, before a machine is rented."""
