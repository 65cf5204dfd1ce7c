"""Hypothesis for all tests here: the same examples in every run, and no time limit that a busy machine could
break."""

from hypothesis import settings

settings.register_profile("selection", max_examples=60, derandomize=True, deadline=None)
settings.load_profile("selection")
