# C candidates
"""The ranks' side of test_presets.py."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pipeline.data.sample import Sample
from pipeline.selection.contract import Selection
from tests.reference import random_samples
from tests.scoring.engine_cases import (
    NUM_CANDIDATES,
    Case,
    build_engine,
    close,
    full_parameters,
    settings_of,
    share,
    target_set,
)

NVME_BYTES = 16384
LOSS_SCALES = (2.0**6, 2.0**14, 2.0**30)
UNIFORM = Selection(np.arange(4), np.full(4, 0.25))


def runs(all_arguments: list[list[str]], nvme_folder: str, min_aio_bytes: int = NVME_BYTES) -> None:
    """Whole runs, one after the other; NVMe offload swaps a state as small as the tiny model's, and none of
    its gradients."""
    import transformers
    from deepspeed.runtime.swap_tensor import optimizer_utils

    from pipeline.train import main

    transformers.utils.logging.disable_progress_bar()
    optimizer_utils.MIN_AIO_BYTES = min_aio_bytes
    allow_float16()
    os.environ["NVME_PATH"] = nvme_folder
    for arguments in all_arguments:
        main(arguments)
        if "nvme" in " ".join(arguments):
            swapped = list(Path(nvme_folder).rglob("exp_avg_sq*.swp"))
            assert swapped, "the Adam state was never swapped out, so this run shows nothing"


def allow_float16() -> None:
    """DeepSpeed takes float16 on a CPU only where it is fast. PyTorch's is right everywhere."""
    from deepspeed.accelerator import get_accelerator

    get_accelerator().is_fp16_supported = lambda: True


def candidates(step: int) -> list[Sample]:
    return random_samples([9, 4, 12, 7, 14, 5], seed=60 + step)


def grams(stage: int, model_folder: str, folder: str) -> dict:
    """Gram matrices (C + 1, C + 1) in identity geometry: in float16 by loss scale, and in float32 of the
    weights rounded to float16."""
    from pipeline.hook import SelectionHook

    rank, world_size = _start()
    found = {}
    for scale in ("fp32", *LOSS_SCALES):
        precision = "fp32" if scale == "fp32" else "fp16"
        top = () if scale == "fp32" else (("fp16", {"loss_scale": scale}),)
        case = Case(stage, precision=precision, top=top)
        settings = settings_of(case, model_folder, Path(folder) / f"{rank}-{scale}.json", world_size)
        engine = build_engine(case, settings)
        if scale == "fp32":
            _round_to_half(engine)
        hook = SelectionHook.attach(engine, target_set(), replace(settings.selection, geometry="identity"), 0)
        signals = hook.select(share(candidates(0), rank, world_size), step=0).signals
        gram = np.zeros((NUM_CANDIDATES + 1, NUM_CANDIDATES + 1))
        gram[:-1, :-1], gram[-1, :-1], gram[:-1, -1] = (
            signals.gram_CC,
            signals.alignment_C,
            signals.alignment_C,
        )
        gram[-1, -1] = signals.target_norm_squared
        found[scale] = gram
        close(engine)
    return found


def overflow(stage: int, model_folder: str, folder: str) -> dict:
    """Weighted steps from a loss scale that overflows down to the first that does not."""
    from pipeline.hook import SelectionHook
    from pipeline.step.weighted_step import weighted_step

    rank, world_size = _start()
    case = Case(stage, precision="fp16", top=(("fp16", {"initial_scale_power": 22, "hysteresis": 1}),))
    settings = settings_of(case, model_folder, Path(folder) / f"{rank}.json", world_size)
    engine = build_engine(case, settings)
    hook = SelectionHook.attach(engine, target_set(), replace(settings.selection, warmup_steps=1), 0)
    outcome = {"applied": [], "unchanged": [], "loss_scale": [], "warmup": []}
    for step in range(25):
        own = share(candidates(step), rank, world_size)
        outcome["warmup"].append(hook.select(own, step).is_warmup)
        if outcome["applied"] and outcome["applied"][-1]:
            break
        before = _state(engine, hook)
        result = weighted_step(engine, own, UNIFORM, pad_token_id=0)
        after = _state(engine, hook)
        outcome["applied"].append(result.was_applied)
        outcome["unchanged"].append(
            len(before) == len(after) and all(torch.equal(a, b) for a, b in zip(before, after))
        )
        outcome["loss_scale"].append(result.loss_scale)
    close(engine)
    return outcome


def _state(engine, hook) -> list[torch.Tensor]:
    """Trained parameters, and this rank's Adam state as far as there is one."""
    moments = [
        m
        for f in hook.scorer.fragments().values()
        for m in (f.exp_avg, f.exp_avg_sq, torch.tensor(f.step))
        if m is not None
    ]
    return [*full_parameters(engine).values(), *(m.clone() for m in moments)]


def _round_to_half(engine) -> None:
    import deepspeed

    parameters = list(engine.module.parameters())
    with (
        deepspeed.zero.GatheredParameters(
            parameters, modifier_rank=0, enabled=engine.zero_optimization_stage() == 3
        ),
        torch.no_grad(),
    ):
        for parameter in parameters:
            parameter.copy_(parameter.half())


def _start() -> tuple[int, int]:
    from pipeline.training.engine import start_process_group

    allow_float16()
    return start_process_group(120)[:2]
