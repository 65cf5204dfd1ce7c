"""The grid of a comparison: settings of all cells, checked before the first of them runs."""

import os
import re
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Optional, Union

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from pipeline import config as configuration
from pipeline.config import Config
from pipeline.settings import RECIPES, by_name, flatten, is_secret
from pipeline.yaml_text import load_yaml

SECTIONS = tuple(f.name for f in fields(Config))
OF_THE_GRID = {
    "data.target": "targets",
    "data.test": "targets",
    "run.seed": "seeds",
    "run.folder": "folder",
    "run.overwrite": "overwrite",
}
"""Settings of a run that the grid makes -> the field of the grid that gives them."""
# Settings that decide, with the step, which candidates come in which order (data/stream.py).
STREAM = (
    "data.pool",
    "data.pool_weights",
    "data.max_tokens",
    "data.on_long",
    "data.on_broken",
    "data.loss_on",
    "model.name",
    "model.revision",
)


@dataclass
class TargetFiles:
    """Files of one target: its examples, and its held-out samples."""

    target: list[str]
    """A few examples, as in data.target."""
    test: list[str]
    """Held-out samples, as in data.test; the result is the loss on them."""


# The one class that values of a grid are made into; config.py forbids all others.
set_parsing_settings(import_path_allowlist=[f"{__name__}.{TargetFiles.__name__}"])


@dataclass
class Grid:
    """A grid of methods x seeds x targets. ${NAME} in any text stands for the environment variable NAME."""

    variants: Union[list[str], dict[str, Optional[dict[str, Any]]]]
    """Variants to compare: name -> settings that differ from the base ({selection.ridge: 0.1}); or a list of
    selection methods."""
    seeds: list[int]
    """Values of run.seed; every variant runs with each."""
    targets: dict[str, TargetFiles]
    """Name of a target -> its files."""
    folder: str
    """Results; one folder a cell below it, TARGET/VARIANT/seed_N. Cells found there finished are not run
    again."""
    base: Union[str, dict[str, Any]] = field(default_factory=dict)
    """Settings of all cells: a recipe of pipeline.train, or the settings themselves. run.save_model is false
    unless set here; data.target, data.test, run.seed and run.folder of a recipe give way to the grid's."""
    parallel: int = 1
    """Cells at a time. Above 1 their seconds disturb each other."""
    ranks: int = 1
    """Ranks of a cell: 1 is a plain process, more go through the deepspeed launcher. On GPUs each takes one
    of its own."""
    overwrite: bool = False
    """Run finished cells again whose settings or data have changed since; without it they are an error."""


@dataclass(frozen=True, eq=False)  # hashed by identity: settings are mutable
class Cell:
    """One run of the grid: a variant with a seed on a target."""

    target: str
    variant: str
    seed: int
    config: Config

    @property
    def folder(self) -> Path:
        """Folder of the run, whose log and settings stand beside it."""
        return Path(self.config.run.folder)

    def __str__(self) -> str:
        return f"{self.target}, {self.variant}, seed {self.seed}"


def parse(description: str, arguments: list[str]) -> tuple[Grid, list[Cell], list[str]]:
    """The grid, its cells and sentences on how they differ in data. ``--section.key value`` sets a setting of
    the base.

    Exits with code 2 and one sentence on an unknown key, a wrong type or a contradiction, in the grid or in
    any cell.
    """
    parser = ArgumentParser(
        description=description,
        allow_abbrev=False,
        usage="%(prog)s --config grid.yaml [--key value ...] [--section.key value ...]",
    )
    parser.add_argument(
        "--config",
        action=configuration.RecipeFile,
        help="YAML file with the keys below, or a recipe: compare_quick",
    )
    parser.add_class_arguments(Grid, as_group=False)
    try:
        own, changes = split(arguments)
        namespace = parser.instantiate(configuration.parse_arguments(parser, own))
        grid = Grid(**{f.name: getattr(namespace, f.name) for f in fields(Grid)})
        cells = cells_of(grid, changes)
        return grid, cells, differences_in_data(cells)
    except ValueError as error:
        parser.error(str(error))


def split(arguments: list[str]) -> tuple[list[str], dict[str, Any]]:
    """The grid's own arguments, and settings of the base by dotted name."""
    own, changes, rest = [], {}, list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and name.split(".")[0] in SECTIONS:
            changes[name] = _yaml(value if equals else rest.pop(0) if rest else "", argument)
        else:
            own.append(argument)
    return own, changes


def cells_of(grid: Grid, changes: dict[str, Any]) -> list[Cell]:
    """All cells, seed by seed, so that early results compare all variants. Raises ValueError, which names the
    cell and its setting."""
    variants = grid.variants
    if isinstance(variants, list):
        variants = {method: {"selection.method": method} for method in variants}
    for name, values in (("variants", grid.variants), ("seeds", grid.seeds), ("targets", grid.targets)):
        if not values:
            raise ValueError(f"{name} is empty: name at least one")
        if len(set(values)) < len(values):
            raise ValueError(f"{name} holds a value twice: {', '.join(map(str, values))}")
    for name in (*variants, *grid.targets):
        if not re.fullmatch(r"[\w.+=-]+", name):
            raise ValueError(f"'{name}' names a folder: use letters, digits and . + = _ - only")
    for name in ("parallel", "ranks"):
        if getattr(grid, name) < 1:
            raise ValueError(f"{name} is {getattr(grid, name)}: the smallest value is 1")
    base = {"run.save_model": False, **_base(grid.base), **changes}
    for origin, settings in (
        ("the command line", changes),
        *((f"variants.{name}", v or {}) for name, v in variants.items()),
    ):
        for setting in set(dict(flatten(settings))) & set(OF_THE_GRID):
            raise ValueError(f"{origin} sets {setting}, which the grid makes of '{OF_THE_GRID[setting]}'")
    configs = {
        name: _variant(name, {**base, **dict(flatten(_expanded(settings or {})))})
        for name, settings in variants.items()
    }
    return [
        _cell(grid, target, files, variant, config, seed)
        for seed in grid.seeds
        for target, files in grid.targets.items()
        for variant, config in configs.items()
    ]


def differences_in_data(cells: list[Cell]) -> list[str]:
    """Sentences on the numbers of candidates and of trained samples, one for each group of variants that has
    the same.

    Raises ValueError where they do not see the same candidates in the same order.
    """
    reference = dict(flatten(configuration.plain(cells[0].config)))
    groups: dict[tuple, dict[str, None]] = {}
    for cell in cells:
        settings = dict(flatten(configuration.plain(cell.config)))
        for name in (*STREAM, *(name for name in settings | reference if name.startswith("data.columns."))):
            if settings.get(name) != reference.get(name):
                raise ValueError(
                    f"{name} is {settings.get(name)} in {cell.variant} and {reference.get(name)} in "
                    f"{cells[0].variant}: they would not see the same candidates, so their losses would not "
                    "compare; make it a grid of its own"
                )
        looked = settings["selection.candidates_per_step"] / settings["selection.score_every"]
        trained = configuration.samples_per_step(cell.config) * cell.config.training.steps
        groups.setdefault((looked, trained), {})[cell.variant] = None
    return [
        f"Looks at {looked:g} candidates a step and trains on up to {trained} samples: {', '.join(names)}."
        for (looked, trained), names in groups.items()
    ]


def changed(config: Config, saved: dict) -> list[str]:
    """'setting: before -> now' for each setting whose value was another in the ``saved`` configuration, and
    that can change a result."""
    now, before = by_name(dict(flatten(configuration.plain(config)))), by_name(dict(flatten(saved)))
    # get: a setting that came later and is not set counts as None, so old cells stay finished.
    names = [name for name in {**now, **before} if now.get(name) != before.get(name)]
    names = [name for name in names if name not in configuration.CHANGE_NO_RESULT]
    return [f"{name}: {before.get(name, '-')} -> {now.get(name, '-')}" for name in names]


def written(grid: Grid) -> dict:
    """The grid as it was written, without the values of environment variables."""
    return asdict(grid)


def _variant(name: str, settings: dict) -> Config:
    try:
        return configuration.from_settings(settings)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _cell(grid: Grid, target: str, files: TargetFiles, variant: str, config: Config, seed: int) -> Cell:
    if not files.test:
        raise ValueError(f"targets.{target}.test is empty: a comparison needs held-out samples")
    data = replace(config.data, target=_expanded(files.target), test=_expanded(files.test))
    folder = Path(_expanded(grid.folder)) / target / variant / f"seed_{seed}"
    cell = Cell(
        target,
        variant,
        seed,
        replace(config, data=data, run=replace(config.run, seed=seed, folder=str(folder), overwrite=False)),
    )
    try:
        configuration.check(cell.config)
        configuration.check_world_size(cell.config, grid.ranks)
        configuration.resolve(cell.config)  # as the run does, whose saved copy is compared
    except ValueError as error:
        raise ValueError(f"{cell}: {error}") from error
    return cell


def _base(base: Union[str, dict]) -> dict[str, Any]:
    """The base's settings by dotted name."""
    if isinstance(base, str):
        path = Path(RECIPES.find(_expanded(base)))
        if not path.is_file():
            raise ValueError(f"base: there is no file {path}")
        base = _yaml(path.read_text(encoding="utf-8"), f"base: {path}")
        if not isinstance(base, dict):
            raise ValueError(f"base: {path} holds no settings")
    if not isinstance(base, dict):
        raise ValueError(f"base holds {base!r}, no settings")
    return dict(flatten(_expanded(base)))


def _yaml(text: str, origin: str) -> Any:
    try:
        return load_yaml(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{origin}: {error}") from error


def _expanded(value: Any) -> Any:
    """``value`` with the environment's values in place of ${NAME}. Raises ValueError for one that is not
    set."""
    if isinstance(value, dict):
        return {key: _expanded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_expanded(item) for item in value]
    if not isinstance(value, str):
        return value

    def environment(match: re.Match) -> str:
        if is_secret(match[1]):
            raise ValueError(
                f"'{value}' names a secret, {match[1]}, whose value would be saved with every cell: "
                "leave it out"
            )
        if match[1] not in os.environ:
            raise ValueError(
                f"'{value}' needs the environment variable {match[1]}, which is not set: "
                f"{match[1]}=... python -m ..."
            )
        return os.environ[match[1]]

    return re.sub(r"\$\{(\w+)\}", environment, value)
