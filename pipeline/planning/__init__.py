"""What a selection step will cost, from shapes, counted operations and a few numbers of the hardware. Runs no
model."""
