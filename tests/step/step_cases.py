# C candidates
"""The ranks' side of test_weighted_step.py: runs of a few optimizer steps that ought to end with the same
parameters."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pipeline.data.sample import Sample
from pipeline.data.targets import TargetSet
from pipeline.selection.contract import Selection
from tests import reference
from tests.scoring.engine_cases import Case, build_engine, close, full_parameters, settings_of, share

NUM_CANDIDATES, STEPS = 8, 3


def candidates(step: int) -> list[Sample]:
    return reference.random_samples([9, 4, 12, 7, 14, 5, 8, 11], seed=30 + step)


def targets() -> TargetSet:
    return TargetSet(reference.random_samples([7, 12, 4], seed=40), 3, seed=0)


UNIFORM = Selection(np.arange(NUM_CANDIDATES), np.full(NUM_CANDIDATES, 1 / NUM_CANDIDATES))
REPLAYED = [
    Selection(np.array([0, 2, 1, 3]), np.array([0.5, 0.2, 0.2, 0.1])),
    Selection(np.array([7, 0, 3]), np.array([0.5, 0.2, 0.3])),
    Selection(np.array([4, 6, 5, 1]), np.array([0.1, 0.2, 0.3, 0.4])),
]


def plain_steps(engine, rank: int, world_size: int) -> None:
    """The textbook loop: this rank's samples in order, mean loss, backward, step. DeepSpeed takes the means
    over micro-batches and ranks."""
    from pipeline.data.collate import collate

    per_micro_step = engine.train_micro_batch_size_per_gpu()
    for step in range(STEPS):
        own = share(candidates(step), rank, world_size)
        for first in range(0, len(own), per_micro_step):
            input_ids_BT, labels_BT = collate(own[first : first + per_micro_step], 0)
            logits_BTV = engine(input_ids=input_ids_BT, use_cache=False).logits[:, :-1].float()
            token_loss_BT = torch.nn.functional.cross_entropy(
                logits_BTV.transpose(1, 2), labels_BT[:, 1:], reduction="none", ignore_index=-100
            )
            loss_B = token_loss_BT.sum(1) / (labels_BT[:, 1:] != -100).sum(1)
            engine.backward(loss_B.mean())
            engine.step()


def selected_steps(
    engine, settings, selections, rank: int, world_size: int, score: bool = True
) -> list[float]:
    """With a scoring pass before every step, whose outcome is not used."""
    from pipeline.hook import SelectionHook
    from pipeline.step.weighted_step import weighted_step

    hook = SelectionHook.attach(
        engine, targets(), replace(settings.selection, method="filter_then_weight"), 0
    )
    losses = []
    for step, selection in enumerate(selections):
        own = share(candidates(step), rank, world_size)
        if score:
            hook.select(own, step)
        losses.append(weighted_step(engine, own, selection, pad_token_id=0).loss)
    return losses


def prepare(case: Case, model_folder: str, file: Path, world_size: int, num_trained: int):
    settings = settings_of(case, model_folder, file, 1)
    settings.selection.candidates_per_step = NUM_CANDIDATES
    settings.selection.method = "full" if num_trained == NUM_CANDIDATES else "filter_then_weight"
    settings.selection.keep_per_step = num_trained
    settings.selection.warmup_steps = 0
    settings.training.micro_batch_size = num_trained // world_size // case.gradient_accumulation_steps
    return settings


def compare_with_plain(cases: list[Case], model_folder: str, folder: str) -> dict[str, dict]:
    """By case the largest difference of each parameter, and how far the plain run has moved it."""
    rank, world_size = start()
    results = {}
    for number, case in enumerate(cases):
        settings = prepare(
            case, model_folder, Path(folder) / f"plain-{rank}-{number}.json", world_size, NUM_CANDIDATES
        )
        engine = build_engine(case, settings)
        before = full_parameters(engine)
        plain_steps(engine, rank, world_size)
        plain = full_parameters(engine)
        close(engine)
        engine = build_engine(case, settings)
        selected_steps(engine, settings, [UNIFORM] * STEPS, rank, world_size)
        selected = full_parameters(engine)
        close(engine)
        results[str(case)] = {
            name: (
                (selected[name] - plain[name]).abs().max().item(),
                (plain[name] - before[name]).abs().max().item(),
            )
            for name in plain
        }
    return results


def compare_with_unscored(cases: list[Case], model_folder: str, folder: str) -> dict[str, dict]:
    """By case names of the parameters that scoring changed by any bit; and, for the first with dropout, those
    that another random state changes (None for the others)."""
    rank, world_size = start()
    results, first_with_dropout = {}, next((case for case in cases if case.kind == "lora"), None)
    for number, case in enumerate(cases):
        settings = prepare(case, model_folder, Path(folder) / f"bits-{rank}-{number}.json", world_size, 4)

        def run(score: bool, seed: int, case=case, settings=settings):
            engine = build_engine(case, settings, dropout=0.3 if case.kind == "lora" else 0.0)
            torch.manual_seed(seed)
            selected_steps(engine, settings, REPLAYED, rank, world_size, score)
            parameters = full_parameters(engine)
            close(engine)
            return parameters

        unscored, scored = run(False, 0), run(True, 0)
        differ = lambda a, b: [name for name in a if not torch.equal(a[name], b[name])]
        otherwise = differ(unscored, run(False, 1)) if case is first_with_dropout else None
        results[str(case)] = {"scored": differ(unscored, scored), "seeded otherwise": otherwise}
    return results


def non_finite(model_folder: str, folder: str) -> list[str]:
    """What a step on a sample with an infinite loss raises, and whether the parameters moved."""
    from pipeline.step import weighted_step

    rank, world_size = start()
    original, outcomes = weighted_step.per_sample_loss, []
    for stage in (0, 1, 2, 3):
        case = Case(stage, "lora")
        settings = prepare(case, model_folder, Path(folder) / f"inf-{rank}-{stage}.json", world_size, 4)
        engine = build_engine(case, settings)
        before = full_parameters(engine)
        if rank == 1:  # only this rank's micro-batch is spoiled
            weighted_step.per_sample_loss = lambda *inputs: original(*inputs) * torch.inf
        try:
            weighted_step.weighted_step(engine, share(candidates(0), rank, world_size), REPLAYED[0], 0)
            outcome = "no error"
        except RuntimeError as error:
            outcome = str(error)
        weighted_step.per_sample_loss = original
        after = full_parameters(engine)
        outcomes.append(
            outcome
            + ("" if all(torch.equal(before[n], after[n]) for n in before) else "; the parameters moved")
        )
        close(engine)
    return outcomes


def fetched(lengths: list[int], num_kept: int) -> list[tuple]:
    """The kept samples as this rank has them after ``fetch_kept``."""
    import torch.distributed as dist

    from pipeline.ranks.collectives import Collectives
    from pipeline.step.deal_over_ranks import fetch_kept

    rank, world_size = start()
    pool = reference.random_samples(lengths, seed=50)
    indices = np.random.default_rng(0).permutation(len(pool))[:num_kept]
    selection = Selection(indices, np.full(num_kept, 1 / num_kept))
    kept = fetch_kept(
        share(pool, rank, world_size), selection, Collectives(dist.group.WORLD, torch.device("cpu"))
    )
    wanted = [(pool[i].input_ids, pool[i].labels) for i in indices]
    return [(sample.input_ids, sample.labels) for sample in kept], wanted


def start() -> tuple[int, int]:
    from pipeline.training.engine import start_process_group

    return start_process_group(120)[:2]
