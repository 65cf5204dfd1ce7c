"""The ranks' side of test_train_step.py: the same steps by one call and stage by stage."""

from dataclasses import replace
from pathlib import Path

from pipeline.data.stream import CandidateStream
from tests import reference
from tests.scoring.engine_cases import Case, build_engine, close, full_parameters
from tests.step.step_cases import NUM_CANDIDATES, prepare, start, targets

STEPS, SCORE_EVERY = 4, 2


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
    """What this rank saw of the two ways, and the sentence where the latest look is not given."""
    from pipeline.hook import SelectionHook
    from pipeline.step.deal_over_steps import deal_over_steps
    from pipeline.step.weighted_step import weighted_step
    from pipeline.train_step import train_step

    rank, world_size = start()
    stream = CandidateStream(
        reference.random_samples([9, 4, 12, 7, 14, 5, 8, 11, 6, 10, 13, 3], seed=5), NUM_CANDIDATES, seed=1
    )
    found = {}
    for way in ("one call", "by stages"):
        file = Path(folder) / f"{way}-{rank}.json"
        settings = prepare(case, model_folder, file, world_size, num_trained=4)
        engine = build_engine(case, settings)
        changed = replace(settings.selection, score_every=SCORE_EVERY, warmup_steps=2)
        hook = SelectionHook.attach(engine, targets(), changed, pad_token_id=0, seed=3)
        seen, look, asked = [], None, []
        record(hook, asked)
        for step in range(STEPS):
            if way == "one call":
                trained = train_step(hook=hook, stream=stream, step=step, look=look)
                is_latest = step % SCORE_EVERY == 0 or trained.look is look
                look, selection, result = trained.look, trained.selection, trained.result
                hash_of_step = trained.selection_hash
                assert is_latest and {"candidates", "update", "total"} == set(trained.seconds)
            else:
                own = stream.shard(step // SCORE_EVERY, rank, world_size)
                if step % SCORE_EVERY == 0:
                    look = hook.select(own, step)
                selection = deal_over_steps(look.selection, SCORE_EVERY)[step % SCORE_EVERY]
                is_first = step % SCORE_EVERY == 0
                hash_of_step = look.selection_hash if is_first else hook.agree(selection, step)
                result = weighted_step(engine, own, selection, pad_token_id=0)
            kept = (selection.indices.tolist(), selection.weights.tolist())
            seen.append((kept, hash_of_step, look.is_warmup, look.target_loss, result.loss, result.grad_norm))
        found[way] = seen, {name: p.tolist() for name, p in full_parameters(engine).items()}, asked
        if way == "one call":
            try:
                train_step(hook=hook, stream=stream, step=STEPS + 1)
            except ValueError as error:
                found["no look"] = str(error)
        close(engine)
    return found
