"""The ranks' side of test_library.py."""

import io
import runpy
from contextlib import redirect_stdout


def run(script: str) -> str:
    """What an example prints on this rank."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        runpy.run_path(script, run_name="__main__")
    return printed.getvalue()
