"""Pools whose samples differ in ways that are known."""

import random

from pipeline.data.sample import IGNORED, Sample


def sample(prompt: list[int], answer: list[int], name: str = "") -> Sample:
    return Sample(prompt + answer, [IGNORED] * len(prompt) + answer, id=name)


def pool_of_two_kinds(num_samples: int, seed: int) -> tuple[list[Sample], list[bool]]:
    """Samples with tokens of 10 to 29, and samples with tokens of 30 to 49; whether each is of the first."""
    draw, samples, is_first = random.Random(seed), [], []
    for number in range(num_samples):
        is_first.append(draw.random() < 0.3)
        low = 10 if is_first[-1] else 30
        tokens = [draw.randrange(low, low + 20) for _ in range(draw.randrange(8, 16))]
        cut = len(tokens) // 2
        samples.append(sample(tokens[:cut], tokens[cut:], str(number)))
    return samples, is_first
