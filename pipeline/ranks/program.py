"""How a program of several ranks is run."""

import logging
import warnings
from collections.abc import Callable

import transformers
from deepspeed.utils import logger as deepspeed_logger

from pipeline.ranks.ending import end_together


def run_program(main: Callable[[], None]) -> None:
    """``main``, with libraries that say less and an end that all ranks share. Does not return."""
    # DeepSpeed's and transformers' use of older names of torch
    warnings.filterwarnings("ignore", category=FutureWarning)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    deepspeed_logger.setLevel(logging.WARNING)
    end_together(main)
