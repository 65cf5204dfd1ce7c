"""Settings by dotted name: what they are, how two sets of them differ, which are secret, and the shipped
files that they name.

DeepSpeed presets, recipes, chat templates and tasks of lm-eval come with the program and go by their names.
They stand beside the package in a checkout and inside it once installed (package-dir in pyproject.toml).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent


@dataclass(frozen=True)
class Shipped:
    """Files of one kind."""

    place: str
    """Their folder in a checkout."""
    suffix: str

    @property
    def folder(self) -> Path:
        installed = PACKAGE / Path(self.place).name
        return installed if installed.is_dir() else PACKAGE.parent / self.place

    def names(self) -> list[str]:
        return sorted(file.stem for file in self.folder.glob(f"*{self.suffix}"))

    def find(self, name: str) -> str:
        """The path of the file called ``name``; ``name`` itself where there is none, for it is a path then.

        A file of the user's that is called the same is reached as ``./name``: what a name means does not hang
        on the working folder.
        """
        return str(self.folder / f"{name}{self.suffix}") if name in self.names() else name

    def name_of(self, path: str) -> str:
        """The name of the file that ``path`` leads to, with the same content; ``path`` itself where it is
        another, or a name."""
        file, name = Path(path), Path(path).stem
        is_shipped = file.suffix == self.suffix and name in self.names() and file.is_file()
        return name if is_shipped and file.read_bytes() == Path(self.find(name)).read_bytes() else path


PRESETS = Shipped("ds_configs", ".json")
RECIPES = Shipped("launch/recipes", ".yaml")
TEMPLATES = Shipped("launch/recipes", ".jinja")
TASKS = Shipped("launch/lm_eval_tasks", ".yaml")
HIDDEN = "[hidden]"
SECRET_NAMES = re.compile(
    r"(?i)(?:^|_)(?:TOKEN|PASS|AUTH|KEY)S?(?:_|$)|TOKEN$|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY"
)
NAMED_BY = {"deepspeed": PRESETS, "model.chat_template": TEMPLATES}
"""Settings that name such a file."""


def by_name(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings by dotted name, with shipped files by their names: runs of earlier versions have saved paths
    (ds_configs/zero2.json)."""
    files = {
        name: kind.name_of(settings[name])
        for name, kind in NAMED_BY.items()
        if isinstance(settings.get(name), str)
    }
    return {**settings, **files}


def flatten(config: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every setting."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differences(before: dict[str, Any], now: dict[str, Any]) -> dict[str, str]:
    """'before -> now' by name. A setting of a later version that is not set (None) is none."""
    before, now = by_name(before), by_name(now)
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return {name: f"{name}: {before.get(name, '-')} -> {now.get(name, '-')}" for name in names}


def is_secret(name: str) -> bool:
    """Whether the value of an environment variable, or a setting, of this name is nobody's business: not
    shown, not saved with a run."""
    return SECRET_NAMES.search(name) is not None


def without_secrets(settings: Any) -> Any:
    """Nested settings with [hidden] for every text whose name says that it is a secret, such as the api_key
    of a monitor."""
    if isinstance(settings, dict):
        return {
            key: HIDDEN
            if isinstance(value, str) and value and is_secret(str(key))
            else without_secrets(value)
            for key, value in settings.items()
        }
    return [without_secrets(value) for value in settings] if isinstance(settings, list) else settings
