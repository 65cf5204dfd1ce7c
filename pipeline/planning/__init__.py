"""Costs of a selection step, from shapes, counted operations and numbers of the hardware; no model runs."""
