"""docs/api.md is what the docstrings say, and they say something about everything that it shows."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text()


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("griffe2md") is None, reason="griffe2md is not installed (requirements-test.txt)"
)
def test_the_page_is_what_the_docstrings_say():
    """Renewed with python -m benchmarks.api."""
    from benchmarks import api

    assert api.render() == PAGE


def test_everything_on_the_page_has_a_description():
    """Sections of a configuration alone are described where they are defined."""
    bare = re.findall(r"^#+ `([\w.]+)`\n+(?:Bases:.*\n+)?```python\n[^`]*```\n+(?=#|\Z)", PAGE, re.MULTILINE)
    assert set(bare) <= {"model", "data", "selection", "training", "run"}, bare


def test_every_section_of_a_docstring_was_understood():
    """One without an empty line before it stays plain text."""
    assert not re.findall(r"^(?:Args|Returns|Raises):$", PAGE, re.MULTILINE)
