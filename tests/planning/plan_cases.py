"""What the tests of planning share: sizes of a run, collectives of one rank, and what real ranks send."""

from dataclasses import replace
from pathlib import Path

import torch

from pipeline.config import SelectionConfig, TrainingConfig
from pipeline.data.targets import TargetSet
from pipeline.planning.passes import Run
from tests.reference import random_samples
from tests.scoring.engine_cases import (
    NUM_CANDIDATES,
    NUM_TARGETS,
    PLAYED,
    build_engine,
    candidates,
    close,
    settings_of,
    share,
)

TOKENS = 10


def sizes(selection: dict | None = None, **changes) -> Run:
    """One rank, float32, eager attention; ``selection`` changes 4 candidates, 2 targets, keep 2, k = 8."""
    settings = dict(
        candidates_per_step=4, target_per_step=2, keep_per_step=2, projection_size=8, backend="exact"
    )
    run = Run(
        selection=SelectionConfig(**{**settings, **(selection or {})}),
        training=TrainingConfig(micro_batch_size=2),
        world_size=1,
        zero_stage=0,
        tokens=TOKENS,
        element_size=4,
        trained_samples=2,
        is_flash=False,
    )
    return replace(run, **changes)


class Alone:
    """What ``Collectives`` are on a single rank, without a process group."""

    rank, world_size, device = 0, 1, torch.device("cpu")

    def rows_to_owners(self, pieces):
        return lambda: pieces[0].unsqueeze(0)

    def gather(self, tensor):
        return tensor.unsqueeze(0)

    def sum(self, tensor):
        return tensor

    def gather_objects(self, value):
        return [value]


def bytes_sent(cases: list, model_folder: str, folder: str) -> list[int]:
    """On this rank: ``Look.bytes_sent`` of a selection for each (engine case, changes of the selection
    settings)."""
    from pipeline.hook import SelectionHook
    from pipeline.step.weighted_step import weighted_step
    from pipeline.training.engine import start_process_group

    rank, world_size, _ = start_process_group(120)
    found = []
    for number, (case, variants) in enumerate(cases):
        settings = settings_of(case, model_folder, Path(folder) / f"{rank}-{number}.json", world_size)
        engine = build_engine(case, settings)
        weighted_step(engine, share(candidates(0), rank, world_size), PLAYED[0], pad_token_id=0)
        for changes in variants:
            targets = TargetSet(random_samples([TOKENS] * NUM_TARGETS, seed=20), NUM_TARGETS, seed=0)
            hook = SelectionHook.attach(
                engine, targets, replace(settings.selection, **changes), pad_token_id=0
            )
            own = share(random_samples([TOKENS] * NUM_CANDIDATES, seed=21), rank, world_size)
            look = hook.select(own, step=1)
            assert not look.is_warmup
            found.append(look.bytes_sent)
        close(engine)
    return found
