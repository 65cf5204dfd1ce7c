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
    """Files of one kind that come with the program."""

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
        """Path of the file called ``name``; ``name`` itself where there is none, since it is a path then.

        A user's own file of that name is reached as ``./name``, so that ``name`` alone means the same in
        every working folder.
        """
        return str(self.folder / f"{name}{self.suffix}") if name in self.names() else name

    def name_of(self, path: str) -> str:
        """Name of the shipped file with the name and content of ``path``; ``path`` itself without one."""
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
"""Kind of file by the setting that names one."""


def by_name(settings: dict[str, Any]) -> dict[str, Any]:
    """``settings``, by dotted name, with names in place of paths of shipped files.

    Runs of earlier versions have saved paths (ds_configs/zero2.json).
    """
    files = {
        name: kind.name_of(settings[name])
        for name, kind in NAMED_BY.items()
        if isinstance(settings.get(name), str)
    }
    return {**settings, **files}


def flatten(config: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of every setting."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differences(before: dict[str, Any], now: dict[str, Any]) -> dict[str, str]:
    """'name: before -> now' by name, for each setting that differs.

    A setting that one side lacks, being of another version, is none if the other side has None.
    """
    before, now = by_name(before), by_name(now)
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return {name: f"{name}: {before.get(name, '-')} -> {now.get(name, '-')}" for name in names}


def draws_at_random(config: dict) -> bool:
    """Whether a run with these nested settings trains on uniform draws from the whole pool and nothing else:
    what all others are measured against.

    Runs of earlier versions know no proposal. The method random measures nothing, so there auto is uniform.
    """
    selection, training = config["selection"], config.get("training") or {}
    is_uniform = selection.get("proposal", "uniform") in ("uniform", "auto")
    return selection["method"] == "random" and is_uniform and not training.get("target_mix")


def is_secret(name: str) -> bool:
    """Whether an environment variable or setting of this name is a secret, neither shown nor saved."""
    return SECRET_NAMES.search(name) is not None


def without_secrets(settings: Any) -> Any:
    """Nested settings with [hidden] for every text that its name calls secret, as a monitor's api_key."""
    if isinstance(settings, dict):
        return {
            key: HIDDEN
            if isinstance(value, str) and value and is_secret(str(key))
            else without_secrets(value)
            for key, value in settings.items()
        }
    return [without_secrets(value) for value in settings] if isinstance(settings, list) else settings
