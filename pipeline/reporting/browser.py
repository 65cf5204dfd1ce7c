"""A picture of a whole page, as headless Chromium shows it."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Optional

from PIL import Image, ImageChops

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)
TIMEOUT_SECONDS = 300
MAX_HEIGHT = 16_000
"""Pixels of a picture: what Chromium draws beyond is blank."""


def find() -> Optional[str]:
    return next(filter(None, map(shutil.which, NAMES)), None)


def screenshot(page: Path, picture: Path, width: int) -> None:
    """Write a PNG of the page from its top to its end, at most MAX_HEIGHT pixels.

    Chromium has a profile of its own, which is gone afterwards. Raises ValueError where none is installed,
    RuntimeError if it fails.
    """
    program = find()
    if program is None:
        raise ValueError(
            f"a screenshot needs a browser, and none of {', '.join(NAMES)} is on the PATH: install Chromium "
            "(Debian: apt-get install chromium), or open the report in any browser"
        )
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        window = Path(profile) / "window.png"
        command = [program, *FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{MAX_HEIGHT}"]
        try:
            subprocess.run(
                [*command, f"--screenshot={window}", page.resolve().as_uri()],
                env={**os.environ, "HOME": profile},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=TIMEOUT_SECONDS,
            )
            shown = Image.open(window).convert("RGB")
        except (subprocess.TimeoutExpired, OSError) as error:
            raise RuntimeError(
                f"Chromium has ended, or was ended after {TIMEOUT_SECONDS} s, before it had shown the page; "
                "open it in any browser instead"
            ) from error
    picture.parent.mkdir(parents=True, exist_ok=True)
    _without_empty_end(shown).save(picture, format="PNG")


def _without_empty_end(window: Image.Image) -> Image.Image:
    """The window down to its last drawn row and a margin as wide as the top's. Most pages are shorter."""
    empty = Image.new("RGB", window.size, window.getpixel((0, window.height - 1)))
    _, top, _, bottom = ImageChops.difference(window, empty).getbbox() or (0, 0, *window.size)
    return window.crop((0, 0, window.width, min(window.height, bottom + top)))
