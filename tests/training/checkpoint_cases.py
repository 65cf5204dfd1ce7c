"""The ranks' side of test_checkpoint.py: runs that are stopped and continued."""

import os
import resource
import signal
from contextlib import contextmanager

from tests.training.train_cases import runs


def stopped(groups: list[tuple[list[str], int, int]]) -> list[int]:
    """For each (arguments, step, rank): a run whose rank gets a signal in that step, and whose disk is full
    for rank 1 before; its code."""
    from pipeline import train_step
    from pipeline.training.checkpoint import DurableWriter

    codes, original, save = [], train_step.weighted_step, DurableWriter.save

    def save_on_a_full_disk(writer, state_dict, path):
        is_full = os.environ["RANK"] == "1" and "checkpoint-2.tmp" in path
        with files_up_to(2000 if is_full else resource.RLIM_INFINITY):
            save(writer, state_dict, path)

    DurableWriter.save = save_on_a_full_disk
    for arguments, step, rank in groups:

        def signalled(engine, *others, step=step, rank=rank):
            if engine.global_steps == step and os.environ["RANK"] == str(rank):
                os.kill(os.getpid(), signal.SIGUSR1 if rank else signal.SIGTERM)
            return original(engine, *others)

        train_step.weighted_step = signalled
        try:
            runs([arguments])
        except SystemExit as ended:
            codes.append(ended.code)
        train_step.weighted_step = original
    DurableWriter.save = save
    return codes


def kill_all_ranks_in_a_file_of_a_checkpoint() -> None:
    """Half of what a rank writes for checkpoint-4 is there when it is killed."""
    from pipeline.training.checkpoint import DurableWriter

    original = DurableWriter.save

    def save(writer, state_dict, path):
        original(writer, state_dict, path)
        if "checkpoint-4.tmp" in path:
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    DurableWriter.save = save


def kill_one_rank_in_scoring() -> None:
    """Rank 1 in the third step, where the other waits for it."""
    from pipeline.step.scorer import Scorer

    original = Scorer.measure

    def measure(scorer, *arguments):
        if scorer.collectives.rank == 1 and scorer.engine.global_steps == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(scorer, *arguments)

    Scorer.measure = measure


@contextmanager
def files_up_to(num_bytes: int):
    """Writing beyond fails in the middle of a file, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def stopped_and_continued(groups: list[tuple[list[str], int, int]]) -> list[int]:
    codes = stopped(groups)
    runs([[*arguments, "--resume", "auto"] for arguments, _, _ in groups])
    return codes


def found_in(folder: str, now: dict, asked: list[str]) -> list[tuple]:
    """For each value of ``resume``: (name of the checkpoint, reasons against others) or the error; and what
    was said."""
    from pipeline.config import Config
    from pipeline.data.sample import Sample
    from pipeline.training import checkpoint
    from pipeline.training.engine import start_process_group

    rank, _, _ = start_process_group(60)
    outcomes = []
    for resume in asked:
        config, said = Config(resume=resume), []
        config.run.folder = folder
        try:
            found = checkpoint.find(config, now, said.append)
            outcomes.append((found and found.path.name, found.unusable if found else [], said))
        except ValueError as error:
            outcomes.append(("error", str(error), said))
    pool = [Sample([1, 2, 3 + rank], [1, 2, 3])]  # a file that was replaced between two ranks' reading
    try:
        checkpoint.identity(Config(), {}, pool, [], [])
    except RuntimeError as error:
        outcomes.append(("error", str(error), []))
    return outcomes
