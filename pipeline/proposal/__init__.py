"""Which samples a step looks at or trains on: from the plain order of the pool to positions in it."""
