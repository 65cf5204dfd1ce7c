"""The grid of a comparison: settings of all cells, checked before the first of them runs."""

import os
import re
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Optional, Union

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from pipeline import config as configuration
from pipeline.config import Config
from pipeline.selection import registry
from pipeline.settings import RECIPES, by_name, draws_at_random, flatten, is_secret
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
HELD_OUT = (
    "model.name",
    "model.revision",
    "model.chat_template",
    "data.max_tokens",
    "data.on_long",
    "data.on_broken",
    "data.loss_on",
)
"""Settings, with data.columns, that decide what a held-out loss is a loss of."""
TRAINED_ON = (
    "data.pool",
    "data.pool_weights",
    "selection.proposal",
    "selection.pool_share",
    "selection.prior",
    "training.target_mix",
)
"""Settings that decide what a step may train on, and in which order."""


@dataclass
class TargetFiles:
    """Files of one target: its examples, and its held-out samples."""

    target: list[str]
    """A few examples, as in data.target."""
    test: list[str]
    """Held-out samples, as in data.test; the result is the loss on them."""
    pool: Optional[list[str]] = None
    """A pool of its own, as in data.pool; the base's where it is left out."""


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
    clock: Literal["auto", "cpu", "wall"] = "auto"
    """Seconds of equal time. cpu: CPU seconds of all ranks, for a machine that others use too. wall: wall
    clock. auto is cpu where the cells train on CPU and have recorded it."""
    budgets: list[float] = field(default_factory=list)
    """Shares of random's time for which each variant is run once more, with a learning rate that has decayed
    when the share is used up ([0.25, 0.5]). The number of steps follows from the cells without a budget,
    which run first."""


@dataclass(frozen=True, eq=False)  # hashed by identity: settings are mutable
class Cell:
    """One run of the grid: a variant with a seed on a target."""

    target: str
    variant: str
    seed: int
    config: Config
    budget: Optional[float] = None
    """Share of random's time that the run may take; None where the settings say how many steps it takes."""

    @property
    def folder(self) -> Path:
        """Folder of the run, whose log and settings stand beside it."""
        return Path(self.config.run.folder)

    def __str__(self) -> str:
        name = f"{self.target}, {self.variant}, seed {self.seed}"
        return name if self.budget is None else f"{name}, budget {self.budget:g}"


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
    for budget in grid.budgets:
        if not 0 < budget < float("inf"):
            raise ValueError(f"budgets holds {budget}: a share of random's time is positive and finite")
    if len(set(grid.budgets)) < len(grid.budgets):
        raise ValueError(f"budgets holds a value twice: {', '.join(map(str, grid.budgets))}")
    base = {"run.save_model": False, **_base(grid.base), **changes}
    of_the_grid = dict(OF_THE_GRID)
    if any(files.pool is not None for files in grid.targets.values()):
        of_the_grid["data.pool"] = "targets"
    for origin, settings in (
        ("the command line", changes),
        *((f"variants.{name}", v or {}) for name, v in variants.items()),
    ):
        for setting in set(dict(flatten(settings))) & set(of_the_grid):
            raise ValueError(f"{origin} sets {setting}, which the grid makes of '{of_the_grid[setting]}'")
    configs = {
        name: _variant(name, {**base, **dict(flatten(_expanded(settings or {})))})
        for name, settings in variants.items()
    }
    if grid.budgets and not any(draws_at_random(configuration.plain(config)) for config in configs.values()):
        raise ValueError(
            "budgets are shares of random's time, and no variant draws at random from the whole pool: add "
            "one (random: {selection.method: random})"
        )
    return [
        _cell(grid, target, files, variant, config, seed)
        for seed in grid.seeds
        for target, files in grid.targets.items()
        for variant, config in configs.items()
    ]


def differences_in_data(cells: list[Cell]) -> list[str]:
    """Sentences on what variants look at and train on: one for each group with the same numbers of samples,
    and one for each setting by which their candidates differ.

    Raises ValueError where the held-out losses would not compare.
    """
    # Cells of one target and seed: among them variants alone differ.
    cells = [cell for cell in cells if (cell.target, cell.seed) == (cells[0].target, cells[0].seed)]
    settings_of = {cell.variant: dict(flatten(configuration.plain(cell.config))) for cell in cells}
    reference = settings_of[cells[0].variant]
    groups: dict[tuple[str, int], list[str]] = {}
    for cell in cells:
        settings = settings_of[cell.variant]
        for name in (*HELD_OUT, *(name for name in settings | reference if name.startswith("data.columns."))):
            if settings.get(name) != reference.get(name):
                raise ValueError(
                    f"{name} is {settings.get(name)} in {cell.variant} and {reference.get(name)} in "
                    f"{cells[0].variant}: their losses are not of the same tokens and would not compare; "
                    "make it a grid of its own"
                )
        trained = configuration.samples_per_step(cell.config) * cell.config.training.steps
        groups.setdefault((_looks(cell.config), trained), []).append(cell.variant)
    sentences = [
        f"{looks} and trains on up to {trained} samples: {', '.join(names)}."
        for (looks, trained), names in groups.items()
    ]
    return [*sentences, *_other_candidates(settings_of)]


def _looks(config: Config) -> str:
    num_candidates, score_every = config.selection.candidates_per_step, config.selection.score_every
    if score_every == 1 or not registry.get(config.selection.method).looks_at_candidates:
        return f"Looks at {num_candidates} candidates a step"
    when = "scored steps" if score_every == "auto" else f"every {score_every}th step"
    return f"Looks at {num_candidates} candidates at {when}"


def _other_candidates(settings_of: dict[str, dict]) -> list[str]:
    """A sentence for each setting by which variants do not train on the same samples in the same order."""
    sentences = []
    for name in TRAINED_ON:
        variants: dict[str, list[str]] = {}
        for variant, settings in settings_of.items():
            variants.setdefault(str(settings.get(name)), []).append(variant)
        if len(variants) > 1:
            values = "; ".join(f"{value} in {', '.join(names)}" for value, names in variants.items())
            sentences.append(f"Variants do not see the same candidates: {name} is {values}.")
    return sentences


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
    pool = config.data.pool if files.pool is None else files.pool
    data = replace(
        config.data, pool=_expanded(pool), target=_expanded(files.target), test=_expanded(files.test)
    )
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
