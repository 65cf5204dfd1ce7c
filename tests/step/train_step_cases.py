"""The ranks' side of test_train_step.py: the same steps by one call and stage by stage."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.data.stream import CandidateStream
from pipeline.proposal.contract import Proposed
from pipeline.selection.contract import Selection
from tests import reference
from tests.scoring.engine_cases import Case, build_engine, close, full_parameters
from tests.step.step_cases import NUM_CANDIDATES, prepare, start, targets

STEPS, SCORED, KEEP, MIXED = 5, (0, 1, 3), 4, 1


class Backwards:
    """Proposes the next samples in the opposite order, and notes what it observes."""

    def __init__(self):
        self.seen = []

    def propose(self, upcoming, num_samples, is_scored, rng):
        return Proposed(upcoming(num_samples)[::-1].copy(), num_samples)

    def observe(self, proposed, cosine_n):
        self.seen.append((proposed.positions_n.tolist(), cosine_n.tolist()))
        return [f"observed {len(cosine_n)}"]

    def state_dict(self):
        return {}


class AtSteps:
    def spend(self, selection_seconds, step_seconds):
        pass

    def is_scored(self, step):
        return step in SCORED

    def observe(self, step, evidence):
        pass

    def state_dict(self):
        return {}


def record(hook, asked: list) -> None:
    """Note which target samples a look asks for, and the seed of its projections."""
    batch, gram = hook.targets.batch, hook.scorer.gram

    def noted_batch(look: int):
        asked.append(f"targets of look {look}")
        return batch(look)

    def noted_gram(*arguments):
        made = gram(*arguments)
        asked.append(f"projections of {made.problem.seed}")
        return made

    hook.targets.batch, hook.scorer.gram = noted_batch, noted_gram


def stories(case: Case, model_folder: str, folder: str) -> dict:
    """What this rank saw of the two ways."""
    from pipeline.hook import SelectionHook
    from pipeline.proposal.proposer import Proposer, cosines
    from pipeline.step.weighted_step import weighted_step
    from pipeline.train_step import train_step

    rank, world_size = start()
    stream = CandidateStream(
        reference.random_samples([9, 4, 12, 7, 14, 5, 8, 11, 6, 10, 13, 3], seed=5), NUM_CANDIDATES, seed=1
    )
    found = {}
    for way in ("one call", "by stages"):
        file = Path(folder) / f"{way}-{rank}.json"
        settings = prepare(case, model_folder, file, world_size, num_trained=KEEP)
        engine = build_engine(case, settings)
        changed = replace(settings.selection, warmup_steps=2)
        hook = SelectionHook.attach(engine, targets(), changed, pad_token_id=0, seed=3)
        proposal = Backwards() if rank == 0 else None
        proposer = Proposer(stream, changed, proposal, AtSteps(), seed=3, num_mixed=MIXED)
        seen, asked, observed, place = [], [], [], 0
        record(hook, asked)
        for step in range(STEPS):
            if way == "one call":
                trained = train_step(hook=hook, proposer=proposer, step=step)
                look, result, positions_n = trained.look, trained.result, trained.plan.proposed.positions_n
                assert trained.plan.is_scored == (step in SCORED) and trained.num_mixed == MIXED
                assert trained.cpu_seconds > 0 and {"candidates", "update", "total"} == set(trained.seconds)
                assert trained.learned == (["observed 8"] if step in SCORED else [])
                selection, hash_of_step = look.selection, look.selection_hash
            else:
                number = NUM_CANDIDATES if step in SCORED else KEEP - MIXED
                positions_n = stream.order(place, number)[::-1]
                place += number
                own = stream.share(positions_n, rank, world_size)
                if step in SCORED:
                    share, moments = hook.scorer.share(own, SCORED.index(step)), hook.scorer.moments(step)
                    measured = hook.scorer.measure(share, moments, step)
                    look = hook.chooser.choose(share, moments, measured, step, KEEP - MIXED)
                    observed.append((positions_n.tolist(), cosines(look.signals).tolist()))
                    selection, hash_of_step = look.selection, look.selection_hash
                else:
                    selection = Selection(np.arange(KEEP - MIXED), np.full(KEEP - MIXED, 1 / (KEEP - MIXED)))
                    hash_of_step = hook.agree(selection, step)
                order = hook.targets.samples
                result = weighted_step(
                    engine, own, selection, 0, False, [order[step % len(order)]], MIXED / KEEP
                )
            kept = (selection.indices.tolist(), selection.weights.tolist())
            seen.append((positions_n.tolist(), kept, hash_of_step, result.loss, result.grad_norm))
        observed = observed or (proposal.seen if proposal else [])
        parameters = {name: p.tolist() for name, p in full_parameters(engine).items()}
        found[way] = seen, parameters, asked, observed
        close(engine)
    return found
