"""Scores and features of a whole file, measured under one state of the model, as a folder of Parquet parts.
Selects nothing."""
