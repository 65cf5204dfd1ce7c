"""One step of the method, top to bottom."""

import time
from typing import Optional

from pipeline.data.stream import CandidateStream
from pipeline.hook import SelectionHook
from pipeline.scoring.stopwatch import Stopwatch
from pipeline.step.deal_over_steps import deal_over_steps
from pipeline.step.look import Look
from pipeline.step.trained_step import TrainedStep
from pipeline.step.weighted_step import weighted_step


def train_step(
    *, hook: SelectionHook, stream: CandidateStream, step: int, look: Optional[Look] = None
) -> TrainedStep:
    """One optimizer step on the samples that the method keeps. Every rank calls it.

        candidates -> factors -> moments -> Gram -> all-reduce
                   -> filter, then weight -> broadcast -> weighted step

    Args:
        hook: attached to the engine that is trained.
        stream: gives the candidates of each look.
        step: counts from 0; names candidates and targets, and seeds what is drawn.
        look: the latest one, where ``selection.score_every`` lets it serve this step too.

    Returns:
        The record of the step; its ``look`` goes into the next call.

    Raises:
        ValueError: ``step`` lies between two looks, and the latest is not given; or as
            ``SelectionHook.select``.
        RuntimeError: as ``SelectionHook.select`` and ``weighted_step``.
    """
    engine, ranks, every = hook.engine, hook.collectives, hook.settings.score_every
    begin, watch = time.perf_counter(), Stopwatch(engine.device)
    # Candidates: this rank's share of the next ones, which follow from seed and step alone.
    with watch("candidates"):
        candidates = stream.shard(step // every, ranks.rank, ranks.world_size)
    if step % every == 0:
        share = hook.scorer.share(candidates)
        # Moments: this rank's slices of exp_avg and exp_avg_sq, read where ZeRO keeps them.
        moments = hook.scorer.moments(step)
        # Factors, Gram, all-reduce: a forward and an activation-gradient backward hand on two factors of each
        # layer; their products meet the moments, and parts of the Gram matrix are summed over ranks.
        measured = hook.scorer.measure(share, moments, step)
        # Filter, then weight, on rank 0 in float64; broadcast, and hashes compared.
        look = hook.chooser.choose(share, moments, measured, step)
        del moments, measured  # views of the Adam state, which the update is about to rewrite
    elif look is None:
        raise ValueError(
            f"step {step} lies between two looks (selection.score_every = {every}): give the latest"
        )
    # Weighted step: this step's part of the kept samples, dealt over ranks by their tokens.
    selection = deal_over_steps(look.selection, every)[step % every]
    selection_hash = hook.agree(selection, step) if step % every else look.selection_hash
    learning_rate = engine.get_lr()[0]
    with watch("update"):
        result = weighted_step(engine, candidates, selection, hook.pad_token_id, hook.is_packed)
    seconds = {**watch.read(), "total": time.perf_counter() - begin}
    return TrainedStep(look, selection, selection_hash, result, learning_rate, seconds, watch.peak_bytes())
