"""Texts of strangers made fit to be shown: invisible characters are spelled out, and secrets are hidden."""

import os
import re
import unicodedata
from collections.abc import Mapping

from pipeline.settings import HIDDEN, is_secret

MIN_SECRET = 8
"""Characters of a secret, at least, for it to be hidden wherever it stands: a shorter one is part of innocent
words too."""
SECRET_SHAPES = re.compile(
    r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)"  # user:password@ of an address
    # the beginnings of tokens by which services mark them
    r"|\b(?:hf_|sk-|gh[pousr]_|github_pat_|xox[abp]-|glpat-|AKIA)[A-Za-z0-9_-]{12,}"
)
TURNS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Marks that turn the direction of what follows, and can make a text look like another one."""


def visible(text: str) -> str:
    """``text`` with control characters, marks of direction and halves of surrogate pairs as escapes, and
    secrets hidden.

    >>> visible("a\\x00b \\u202e")
    'a\\\\x00b \\\\u202e'
    """
    return "".join(map(_escaped, hide(text)))


def hide(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """``text`` without the values of secret environment variables, passwords in addresses, and the tokens of
    known services."""
    for name, value in environment.items():
        if len(value) >= MIN_SECRET and is_secret(name):
            text = text.replace(value, HIDDEN)
    return SECRET_SHAPES.sub(HIDDEN, text)


def cut(text: str, most: int) -> str:
    """The first ``most`` characters of ``text``, and how many more there are."""
    return text if len(text) <= most else f"{text[:most]}\u2026 (+{len(text) - most:,})"


def _escaped(character: str) -> str:
    if character in "\n\t" or (
        unicodedata.category(character) not in ("Cc", "Cs") and character not in TURNS
    ):
        return character
    return f"\\x{ord(character):02x}" if ord(character) < 256 else f"\\u{ord(character):04x}"
