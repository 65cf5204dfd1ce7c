"""What becomes of the kept samples: dealt over ranks and micro-batches, and their weighted loss."""
