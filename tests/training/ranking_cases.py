"""The ranks' side of test_ranking_model.py: states and losses of engines, and the engine after a fit."""

from pathlib import Path

import numpy as np
import torch

from pipeline.data.sample import IGNORED, Sample
from tests import reference
from tests.scoring.engine_cases import (
    KEEP,
    Case,
    _fragments,
    build_engine,
    candidates,
    close,
    full_parameters,
    settings_of,
    share,
)

LEARNING_RATE = 3e-3
SAMPLES = [
    *reference.random_samples([9, 4, 12, 7, 3, 15, 5, 8, 11], seed=70, unsupervised=(3,)),
    Sample([7], [7]),
    Sample([9, 9], [IGNORED, 9]),
]
TARGETS = reference.random_samples([6, 13, 4], seed=71)


def measured(cases: list[Case], model_folder: str, folder: str) -> dict[str, dict]:
    """By case what the engine's ``RankingModel`` finds, and whether the engine is afterwards as it was."""
    from pipeline.selection.contract import Selection
    from pipeline.step.weighted_step import weighted_step
    from pipeline.training import ranking_model
    from pipeline.training.engine import start_process_group

    rank, world_size, _ = start_process_group(120)
    ranking_model.BLOCK = 4  # several blocks, the last one shorter than the ranks
    found = {}
    for number, case in enumerate(cases):
        settings = settings_of(case, model_folder, Path(folder) / f"{rank}-{number}.json", world_size)
        kept = Selection(np.arange(KEEP), np.full(KEEP, 1 / KEEP))

        def two_steps(asks, case=case, settings=settings, kept=kept):
            """The Adam state and parameters of a run that asks in between, or does not."""
            engine = build_engine(case, settings)
            engine.module.train()
            torch.manual_seed(3)
            weighted_step(engine, share(candidates(0), rank, world_size), kept, 0, case.is_packed)
            before, answer = state(engine), asks(engine)
            untouched = same(before, state(engine))
            loss = weighted_step(engine, share(candidates(1), rank, world_size), kept, 0, case.is_packed).loss
            after = (state(engine), loss, engine.global_steps, torch.get_rng_state())
            close(engine)
            return answer, untouched, after

        def ask(engine, case=case):
            model = ranking_model.RankingModel(engine, 0, 2, LEARNING_RATE, case.is_packed)
            answer = {"states": model.pooled_states(SAMPLES), "losses": model.losses(SAMPLES)}
            parameters = full_parameters(engine)
            try:
                answer["around"] = model.losses_around_fit(SAMPLES, TARGETS)
            except ValueError as error:
                answer["refused"] = str(error)
            return {**answer, "parameters": parameters, "is_training": engine.module.training}

        answer, untouched, after = two_steps(ask)
        _, _, undisturbed = two_steps(lambda engine: None)
        found[str(case)] = {
            **answer,
            "untouched": untouched,
            "same_afterwards": same(after[0], undisturbed[0]) and after[1:3] == undisturbed[1:3],
            "same_draws": torch.equal(after[3], undisturbed[3]),
        }
    return found


def state(engine) -> list:
    """Parameters, gradients and Adam state of this rank."""
    gradients = [None if p.grad is None else p.grad.clone() for p in engine.module.parameters()]
    return [*full_parameters(engine).values(), *gradients, *_fragments(engine)]


def same(one, other) -> bool:
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
