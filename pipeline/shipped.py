"""Files that come with the program and go by their names: DeepSpeed presets, recipes, chat templates, tasks of lm-eval.

They stand beside the package in a checkout and inside it once installed (package-dir in pyproject.toml).
"""

from dataclasses import dataclass
from pathlib import Path

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

        A file of the user's that is called the same is reached as ``./name``: what a name means does not hang on the working folder.
        """
        return str(self.folder / f"{name}{self.suffix}") if name in self.names() else name


PRESETS = Shipped("ds_configs", ".json")
RECIPES = Shipped("launch/recipes", ".yaml")
TEMPLATES = Shipped("launch/recipes", ".jinja")
TASKS = Shipped("launch/lm_eval_tasks", ".yaml")
