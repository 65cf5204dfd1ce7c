"""A grid of trainings: its cells, their runs, and what they say together."""
