"""The ranks' side of test_checkpoint.py: runs that are stopped and continued."""

import os
import signal

from tests.training.train_cases import runs


def stopped_and_continued(groups: list[tuple[list[str], int, int]]) -> list:
    """For each (arguments, step, rank): a run whose rank gets SIGUSR1 in that step, continued; exit codes of the stopped parts."""
    from pipeline import train

    codes, original = [], train.weighted_step
    for arguments, step, rank in groups:

        def signalled(engine, *others, step=step, rank=rank):
            if engine.global_steps == step and os.environ["RANK"] == str(rank):
                os.kill(os.getpid(), signal.SIGUSR1)
            return original(engine, *others)

        train.weighted_step = signalled
        try:
            runs([arguments])
        except SystemExit as ended:
            codes.append(ended.code)
        train.weighted_step = original
        runs([[*arguments, "--resume", "auto"]])
    return codes


def found_in(folder: str, now: dict, asked: list[str]) -> list[tuple]:
    """For each value of ``resume``: (name of the checkpoint, reasons against others) or the error; and what was said."""
    from pipeline.config import Config
    from pipeline.training import checkpoint
    from pipeline.training.engine import start_process_group

    start_process_group(60)
    outcomes = []
    for resume in asked:
        config, said = Config(resume=resume), []
        config.run.folder = folder
        try:
            found = checkpoint.find(config, now, said.append)
            outcomes.append((found and found.path.name, found.unusable if found else [], said))
        except ValueError as error:
            outcomes.append(("error", str(error), said))
    return outcomes
