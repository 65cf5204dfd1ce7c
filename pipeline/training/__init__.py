"""A run and its parts: model, engine, evaluation, checkpoints, records, self-check."""
