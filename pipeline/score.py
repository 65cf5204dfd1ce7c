"""Score a whole file against a target, offline: how much each sample's update would help, and features for a
selection of one's own.

python -m pipeline.score --config RECIPE.yaml --output FOLDER [--resume RUN] [--section.key value ...]

What it does, batch by batch, stands in pipeline/datastore/run.py.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Optional

from jsonargparse import ArgumentParser, Namespace

from pipeline.config import Config, SelectionConfig, build_parser, needs_moments, parse_with

UNUSED = (
    *("--data.test", "[]"),
    *("--training.evaluation_answers", "0"),
    *("--run.overwrite", "false"),
    *("--selection.seed_scores", "null"),
)
"""Settings of a run, in whose config.yaml they may stand: nothing here reads them, and a check of them would
refuse the file."""


def main(arguments: Optional[list[str]] = None) -> None:
    """Score as ``arguments`` say, by default those of the command line."""
    config, options = parse_score(arguments)
    # Not at the top: torch, DeepSpeed and transformers take seconds to load, and --help, an unknown key and a
    # contradiction are answered without them.
    from pipeline.datastore.run import score

    score(config, options)


def run(arguments: Optional[list[str]] = None) -> None:
    """``main``, to an end that all ranks share."""
    config, options = parse_score(arguments)
    from pipeline.datastore.run import score  # not at the top, as above
    from pipeline.ranks.program import run_program

    run_program(lambda: score(config, options))


def score_parser() -> ArgumentParser:
    parser = build_parser(__doc__.split("\n\n")[0])
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FOLDER", help="where the Parquet parts go, or go on"
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=0,
        help="samples of all ranks in one pass; 0 is selection.candidates_per_step",
    )
    parser.add_argument(
        "--part",
        type=int,
        default=2048,
        help="samples of one Parquet file; a stopped program loses less than one",
    )
    parser.add_argument(
        "--features",
        type=int,
        default=0,
        metavar="D",
        help="numbers for each sample whose inner products approximate those of the gradients; 0 writes "
        "none, and the projected or factored backend is needed for others",
    )
    return parser


def parse_score(arguments: Optional[list[str]] = None) -> tuple[Config, Namespace]:
    """Settings, their selection as scores need it, and the program's own arguments. Exits with code 2 and one
    sentence where they contradict each other."""
    parser = score_parser()
    config, options = parse_with(parser, [*(sys.argv[1:] if arguments is None else arguments), *UNUSED])
    options.batch = options.batch or config.selection.candidates_per_step
    try:
        for name, smallest in (("batch", 1), ("part", 1), ("features", 0)):
            if getattr(options, name) < smallest:
                raise ValueError(f"{name} is {getattr(options, name)}: the smallest value is {smallest}")
        config.selection = scoring_selection(config, options)
    except ValueError as error:
        parser.error(str(error))
    return config, options


def scoring_selection(config: Config, options: Namespace) -> SelectionConfig:
    """The selection that measures samples. ``options.selection.geometry`` tells an explicit one from what
    ``auto`` became. Raises ValueError."""
    selection = config.selection
    if not config.data.target:
        raise ValueError("data.target is empty: name examples of what the samples are to be measured against")
    if config.resume == "auto":
        raise ValueError(
            "resume = auto has no meaning here: name a checkpoint or the folder of a run, or leave it out to "
            "score the model as it is"
        )
    if options.features and selection.backend == "exact":
        raise ValueError(
            f"features = {options.features} needs selection.backend = projected or factored: exact forms "
            "inner products of whole gradients and leaves no features"
        )
    if selection.contraction == "token_token":
        raise ValueError(
            "selection.contraction = token_token cannot keep the target for a whole file: leave it at auto"
        )
    geometry = selection.geometry
    if config.resume is None and options.selection.geometry == "auto":
        geometry = "identity"
    if geometry == "auto":  # of a method that scores no gradients
        geometry = "update"
    scoring = replace(selection, method="filter_then_weight", geometry=geometry, reference_model=None)
    if config.resume is None and needs_moments(scoring):
        what = f"geometry = {geometry}" if geometry != "identity" else f"momentum = {selection.momentum}"
        raise ValueError(
            f"selection.{what} measures with Adam's state, which a model alone does not have: name a "
            "checkpoint or a run with --resume, or set selection.geometry to identity and selection.momentum "
            "to cancel"
        )
    return scoring


if __name__ == "__main__":
    run()
