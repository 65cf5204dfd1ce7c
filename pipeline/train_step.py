"""One step of the method, top to bottom."""

import time

import torch

from pipeline.hook import SelectionHook
from pipeline.proposal.proposer import Proposer
from pipeline.scoring.stopwatch import Stopwatch
from pipeline.step.trained_step import TrainedStep
from pipeline.step.weighted_step import weighted_step


def train_step(*, hook: SelectionHook, proposer: Proposer, step: int) -> TrainedStep:
    """One optimizer step on the samples that the method keeps. Every rank calls it.

        proposal -> candidates -> factors -> moments -> Gram -> all-reduce
                 -> filter, then weight -> broadcast -> weighted step

    Between two steps that score, the update takes what is proposed, at equal weights.

    Args:
        hook: attached to the engine that is trained.
        proposer: gives the samples of each step, and learns from those that are scored.
        step: counts from 0; seeds what is drawn.

    Returns:
        The record of the step.

    Raises:
        ValueError: as ``SelectionHook.select``.
        RuntimeError: as ``SelectionHook.select`` and ``weighted_step``.
    """
    engine, ranks, num_mixed = hook.engine, hook.collectives, proposer.num_mixed
    begin, cpu, watch = time.perf_counter(), time.process_time(), Stopwatch(engine.device)
    # Proposal: which of the next samples are worth the time; the same on every rank, and this rank's share.
    with watch("candidates"):
        plan = proposer.plan(step)
        candidates = proposer.share(plan, ranks.rank, ranks.world_size)
    if plan.is_scored:
        share = hook.scorer.share(candidates, plan.turn)
        # Moments: this rank's slices of exp_avg and exp_avg_sq, read where ZeRO keeps them.
        moments = hook.scorer.moments(step)
        # Factors, Gram, all-reduce: a forward and an activation-gradient backward hand on two factors of each
        # layer; their products meet the moments, and parts of the Gram matrix are summed over ranks.
        measured = hook.scorer.measure(share, moments, step)
        # Filter, then weight, on rank 0 in float64; broadcast, and hashes compared.
        look = hook.chooser.choose(share, moments, measured, step, hook.settings.keep_per_step - num_mixed)
        del moments, measured  # views of the Adam state, which the update is about to rewrite
        # Learn: the cosines that were seen teach the proposal, and tell when the next look is due.
        learned = proposer.observe(plan, look.signals, look.halves, look.weights_2C)
    else:
        look, learned = hook.chooser.take(len(plan.proposed.positions_n), step), []
    # Weighted step: the kept samples, dealt over ranks by their tokens.
    mixed = hook.targets.mixed(step, num_mixed) if hook.targets else []
    mixed_share = num_mixed / hook.settings.keep_per_step
    learning_rate = engine.get_lr()[0]
    with watch("update"):
        result = weighted_step(
            engine, candidates, look.selection, hook.pad_token_id, hook.is_packed, mixed, mixed_share
        )
    seconds = {**watch.read(), "total": time.perf_counter() - begin}
    proposer.spend(sum(look.seconds.values()) + seconds["candidates"], seconds["total"])
    spent = torch.tensor(time.process_time() - cpu, dtype=torch.float64, device=engine.device)
    cpu_seconds = ranks.sum(spent).item()
    return TrainedStep(
        plan, look, learned, result, num_mixed, learning_rate, seconds, cpu_seconds, watch.peak_bytes()
    )
