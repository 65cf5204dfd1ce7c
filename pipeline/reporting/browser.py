"""A page as headless Chromium shows it: a picture of all of it, and what a script finds out about it."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional

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
    "--remote-debugging-pipe",
)
TIMEOUT_SECONDS = 300
ENDED = f"Chromium has ended, or was ended after {TIMEOUT_SECONDS} s, before it had shown the page; open it in any browser instead"
MAX_HEIGHT = 16_000
"""Pixels of a picture: what Chromium draws beyond is blank."""


def find() -> Optional[str]:
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page at a time, steered by Chromium's DevTools protocol over a pipe: JSON messages that end with a
    zero byte."""

    def __init__(self, to_browser: int, from_browser: int):
        self._to, self._from = to_browser, from_browser
        self._buffer, self._number, self._session = b"", 0, {}
        self.requests: list[str] = []
        """Addresses that the page has asked for, itself among them."""
        self.errors: list[str] = []
        """What the page's console has heard."""
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = {
            "sessionId": self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        }
        for domain in ("Page", "Network", "Log", "Runtime"):
            self._ask(f"{domain}.enable")

    def open(self, page: Path, width: int, dark: bool = False) -> None:
        """Show a page as a device of ``width`` CSS pixels does."""
        self.requests, self.errors = [], []
        self._ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=844,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self._ask(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        )
        self._ask("Page.navigate", url=Path(page).resolve().as_uri())
        while self._read().get("method") != "Page.loadEventFired":
            pass

    def evaluate(self, script: str) -> Any:
        """What a JavaScript expression is in the page, as JSON can hold it."""
        found = self._ask("Runtime.evaluate", expression=script, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"the page's script failed: {found['exceptionDetails']}")
        return found["result"].get("value")

    def screenshot(self) -> bytes:
        """PNG of the whole page, from its top to MAX_HEIGHT."""
        size = self._ask("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], MAX_HEIGHT), "scale": 1}
        return base64.b64decode(
            self._ask("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)["data"]
        )

    def _ask(self, method: str, **parameters) -> dict:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters, **self._session}
        try:
            os.write(self._to, json.dumps(message).encode() + b"\0")
        except BrokenPipeError:
            raise RuntimeError(ENDED) from None
        while (answer := self._read()).get("id") != self._number:
            pass
        if "error" in answer:
            raise RuntimeError(f"Chromium refuses {method}: {answer['error'].get('message')}")
        return answer["result"]

    def _read(self) -> dict:
        while b"\0" not in self._buffer:
            chunk = os.read(self._from, 1 << 20)
            if not chunk:
                raise RuntimeError(ENDED)
            self._buffer += chunk
        raw, self._buffer = self._buffer.split(b"\0", 1)
        message = json.loads(raw)
        parameters = message.get("params", {})
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        if message.get("method") == "Log.entryAdded":
            self.errors.append(parameters["entry"]["text"])
        return message


@contextmanager
def browser() -> Iterator[Browser]:
    """Chromium in a profile of its own, which is gone afterwards. Raises ValueError where none is installed,
    RuntimeError if it fails."""
    program = find()
    if program is None:
        raise ValueError(
            f"a screenshot needs a browser, and none of {', '.join(NAMES)} is on the PATH: install Chromium "
            "(Debian: apt-get install chromium), or open the report in any browser"
        )
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        (commands_out, commands_in), (answers_out, answers_in) = os.pipe(), os.pipe()
        # Chromium reads commands from descriptor 3 and answers on 4; a shell puts them there and becomes
        # Chromium.
        script = f'exec "$@" 3<&{commands_out} 4>&{answers_in}'
        command = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(
            ["bash", "-c", script, "chromium", *command],
            pass_fds=(commands_out, answers_in),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": profile},
        )
        os.close(commands_out)
        os.close(answers_in)
        clock = threading.Timer(TIMEOUT_SECONDS, process.kill)
        clock.start()
        try:
            yield Browser(commands_in, answers_out)
        finally:
            os.close(commands_in)  # Chromium ends when nobody steers it any more
            os.close(answers_out)
            process.terminate()
            process.wait()
            clock.cancel()


def screenshot(page: Path, picture: Path, width: int) -> None:
    with browser() as chromium:
        chromium.open(page, width)
        Path(picture).parent.mkdir(parents=True, exist_ok=True)
        Path(picture).write_bytes(chromium.screenshot())
