"""Which samples: the plan of the batches, their shares, windows and random streams."""
