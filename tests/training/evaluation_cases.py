"""The ranks' side of test_evaluation.py: greedy answers of engines against a loop that decodes one token of
one sample at a time."""

from pathlib import Path

import torch

from pipeline.data.sample import IGNORED, Sample
from tests import reference
from tests.conftest import tokenizer
from tests.scoring.engine_cases import Case, build_engine, close, settings_of

NUM_TOKENS = 6
PROMPTS = [sample.input_ids for sample in reference.random_samples([9, 4, 12, 7, 3, 15, 5], seed=60)]


def greedy(model: torch.nn.Module, prompt: list[int], end_token_id: int) -> list[int]:
    """Up to NUM_TOKENS tokens, the end token with them; no cache, no padding."""
    answer = []
    while len(answer) < NUM_TOKENS and end_token_id not in answer:
        answer.append(
            int(model(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits[0, -1].argmax())
        )
    return answer


@torch.no_grad()
def questions(kind: str, model_folder: str) -> tuple[list[Sample], list[bool], int, list[int]]:
    """Samples, whether the model answers them right, an end token that stands within some of its answers, and
    their lengths.

    Wrong references are another text, or end before the model's answer does.
    """
    model = reference.load(model_folder, kind).eval()
    free = [greedy(model, prompt, end_token_id=-1) for prompt in PROMPTS]
    end = free[0][2]
    answers = [greedy(model, prompt, end) for prompt in PROMPTS]
    samples, right = [], []
    for i, (prompt, answer) in enumerate(zip(PROMPTS, answers)):
        wrong = 10 if answer[0] != 10 else 11
        wanted = {0: answer, 1: [wrong] * NUM_TOKENS, 2: answer[:-2] or [wrong]}[i % 3]
        samples.append(Sample(prompt + wanted, [IGNORED] * len(prompt) + wanted))
        right.append(i % 3 == 0)
    return samples, right, end, [len(answer) for answer in answers]


def exact_matches(cases: list[Case], model_folder: str, folder: str) -> dict[str, tuple]:
    """By case the share found and expected, the right ones found one by one and expected, and the
    answers' lengths."""
    from pipeline.training.evaluation import exact_match

    found = {}
    for case in cases:
        samples, right, end, lengths = questions(case.kind, model_folder)
        words = tokenizer()
        words.eos_token = words.convert_ids_to_tokens(end)
        engine = build_engine(case, settings_of(case, model_folder, Path(folder) / f"{case}.json", 2))
        engine.module.train()
        share = exact_match(engine, samples, words, 2)
        # Not at stage 3, where each forward gathers every layer. A wrong sample with a reference of full
        # length goes along: a shorter one alone would also end the answer there.
        one_by_one = case.stage < 3 and [
            2 * exact_match(engine, [sample, samples[1]], words, 2) for sample in samples
        ]
        found[str(case)] = (
            share,
            sum(right) / len(right),
            one_by_one,
            right,
            lengths,
            engine.module.training,
        )
        close(engine)
    return found
