"""A small pool of token ids for rankings, with what tends to go wrong, and the same pool as a token file."""

from pathlib import Path

import numpy as np

from pipeline.data import token_file
from pipeline.data.sample import IGNORED, Sample
from pipeline.data.token_file import TokenFile

NUM_TOKENS = 40


def whole(ids: list[int]) -> Sample:
    """A sample that is supervised from its first token on."""
    return Sample(ids, ids)


def pool(num_samples: int = 300, seed: int = 0) -> list[Sample]:
    """Samples of 1 to 30 tokens, the frequent ones many times; some without an answer, one of each ten a copy
    of its neighbour."""
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, NUM_TOKENS + 1)
    samples = list[Sample]()
    for number in range(num_samples):
        ids = rng.choice(NUM_TOKENS, size=rng.integers(1, 31), p=share / share.sum()).tolist()
        num_prompt = len(ids) if number % 7 == 3 else len(ids) // 2
        kind, damage = "abc"[number % 3], ("none", "", "duplicate", "gibberish")[rng.integers(4)]
        if number % 10 == 9:
            ids, num_prompt = samples[-1].input_ids, len(samples[-1].input_ids) // 2
        samples.append(Sample(ids, [IGNORED] * num_prompt + ids[num_prompt:], f"{number}", kind, damage))
    return samples


def targets(num_targets: int = 5) -> list[Sample]:
    """Others of the same kind of text, of kind a; the last has a token that the pool does not have."""
    found = pool(num_targets, seed=1)
    odd = [*found[-1].input_ids, NUM_TOKENS + 3]
    return [Sample(one.input_ids, one.labels, source="a") for one in found[:-1]] + [
        Sample(odd, odd, source="a")
    ]


def as_file(samples: list[Sample], folder: Path) -> TokenFile:
    path = folder / "pool.json"
    token_file.write(path, [samples], dict, lambda: None)
    return TokenFile(path)


def slow_round_robin(score_MN: np.ndarray) -> list[int]:
    """Each row takes its best column that is left, the first of equal ones."""
    left, order = set(range(score_MN.shape[1])), list[int]()
    while left:
        row = score_MN[len(order) % len(score_MN)]
        best = max(
            left, key=lambda position: (-np.inf if np.isnan(row[position]) else row[position], -position)
        )
        order.append(best)
        left.remove(best)
    return order


def is_in_turn(order_N: np.ndarray, score_MN: np.ndarray, tolerance: float) -> bool:
    """Whether each row in turn takes a best column that is left, up to the rounding of scores."""
    is_left_N = np.ones(len(order_N), dtype=bool)
    for turn, position in enumerate(order_N.tolist()):
        row_N = score_MN[turn % len(score_MN)]
        if row_N[position] < row_N[is_left_N].max() - tolerance:
            return False
        is_left_N[position] = False
    return True
