"""Scores and features of a whole file under one state of the model, as a folder of Parquet parts."""
