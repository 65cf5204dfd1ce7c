"""Fine-tune with online data selection.

deepspeed --module pipeline.train --config launch/recipes/lora.yaml [--section.key value ...]

What a run does, step by step, stands in pipeline/training/run.py.
"""

from typing import Optional

from pipeline.config import Config, parse


def main(arguments: Optional[list[str]] = None) -> None:
    """Train with the settings that ``arguments`` give, by default those of the command line."""
    config = _settings(arguments)
    # Not at the top: torch, DeepSpeed and transformers take seconds to load, and --help, an unknown key and a
    # contradiction are answered without them.
    from pipeline.training.run import train

    train(config)


def run(arguments: Optional[list[str]] = None) -> None:
    """``main``, to an end that all ranks share."""
    config = _settings(arguments)
    from pipeline.ranks.program import run_program  # not at the top, as above
    from pipeline.training.run import train

    run_program(lambda: train(config))


def _settings(arguments: Optional[list[str]]) -> Config:
    """Settings of the command line. Exits with code 2 and one sentence where they contradict each other."""
    return parse(__doc__.split("\n\n")[0], arguments)


if __name__ == "__main__":
    run()
