"""The start and the end of a program of several ranks."""

import logging
import warnings
from collections.abc import Callable

import transformers
from deepspeed.utils import logger as deepspeed_logger

from pipeline.ranks.ending import end_together


def run_program(main: Callable[[], None]) -> None:
    """Run ``main`` with quieter libraries, and end all ranks together. Does not return."""
    # DeepSpeed and transformers use older names of torch, which warn.
    warnings.filterwarnings("ignore", category=FutureWarning)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    deepspeed_logger.setLevel(logging.WARNING)
    end_together(main)
