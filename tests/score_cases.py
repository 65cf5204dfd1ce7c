"""The ranks' side of test_score.py: programs that train and score, one after the other, and what may befall
them."""

import os
import signal

from tests.training.train_cases import spoil_candidates


def programs(calls: list[tuple[str, list[str]]]) -> list[str]:
    """Each (what, arguments) in turn, and how each ended: '' or its error or exit code.

    What is ``train``, ``score``, ``stop`` (a score whose last rank gets SIGTERM in its third batch) or
    ``spoil`` (one in which a token spoils losses).
    """
    from pipeline import score, train

    ended = []
    for what, arguments in calls:
        if what == "stop":
            _stop_in_third_batch()
        if what == "spoil":
            spoil_candidates()
        try:
            (train if what == "train" else score).main(arguments)
            ended.append("")
        except (ValueError, SystemExit) as error:
            ended.append(str(error))
    return ended


def killed(arguments: list[str], number: int) -> None:
    """A score that is killed when half of part ``number`` is written."""
    from pipeline import durable, score

    original = durable.write_bytes

    def write(path, content):
        if path.name == f"part-{number:05d}.parquet":
            durable.partial(path).write_bytes(bytes(content)[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        original(path, content)

    durable.write_bytes = write
    score.main(arguments)


def _stop_in_third_batch() -> None:
    from pipeline.datastore.scorer import FileScorer

    original, num_batches = FileScorer._score, []

    def score(scorer, samples):
        num_batches.append(len(samples))
        if len(num_batches) == 3 and scorer.hook.collectives.rank == scorer.hook.collectives.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)
            FileScorer._score = original
        return original(scorer, samples)

    FileScorer._score = score
