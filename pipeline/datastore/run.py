"""A whole file scored against a target, from settings to Parquet parts.

One batch:  samples -> factors -> moments -> Gram column of the target -> all-reduce -> Parquet part (rank 0)
"""

import time
from pathlib import Path
from typing import Optional

from jsonargparse import Namespace
from tqdm import tqdm

from pipeline.config import Config, SelectionConfig, needs_moments
from pipeline.data.targets import TargetSet
from pipeline.datastore import parts
from pipeline.datastore.made_of import MAY_DIFFER, made_of
from pipeline.datastore.parts import Parts
from pipeline.datastore.scorer import FileScorer
from pipeline.geometry import GEOMETRIES
from pipeline.hook import SelectionHook
from pipeline.ranks.narrator import Narrator
from pipeline.ranks.stopping import REQUEUE, StopRequests
from pipeline.ranks.together import together
from pipeline.settings import differences
from pipeline.training import checkpoint, run_folder, self_check
from pipeline.training.model import load_tokenizer
from pipeline.training.prepare import load, prepare
from pipeline.training.tokenised import read


def score(config: Config, options: Namespace) -> None:
    """Score ``config.data.pool`` into ``options.output``, or continue there. Every rank calls it.

    Args:
        config: with the selection's settings for the scores.
        options: output, batch, part and features (``pipeline.score``).
    """
    stop = StopRequests()
    prepared = prepare(config, takes_steps=False)
    rank, world_size, say = prepared.rank, prepared.world_size, prepared.say
    folder = together(lambda: _prepare(options.output))
    tokenizer = load_tokenizer(config.model)
    pool, targets = (read(name, tokenizer, config, say) for name in ("pool", "target"))
    identity = checkpoint.identity(config, prepared.merged, pool, targets, [])
    found = checkpoint.find_weights(config.resume, identity, say) if config.resume else None

    loaded = load(config, prepared, found=found)
    engine, pad_token_id = loaded.engine, tokenizer.pad_token_id
    target_set = TargetSet(targets, len(targets), config.run.seed, rotate=False)  # all of them, at every look
    hook = SelectionHook.attach(
        engine, target_set, config.selection, pad_token_id, config.run.seed, None, loaded.is_packed
    )
    kernel = loaded.attention.kernel
    say(f"{world_size} ranks on {prepared.device.type}, {prepared.dtype}; attention: {kernel}")
    share = -(-options.batch // world_size)
    say.checks(
        self_check.run(
            hook, [pool[i % len(pool)] for i in range(rank, share * world_size, world_size)], selects=False
        )
    )
    if found:
        checkpoint.load_engine(engine, found, folder, say)
        _say_what_differs(config, found, say)
        if hook.needs_moments:
            say.checks([self_check.check_state(hook)])
    say(f"geometry {config.selection.geometry}: {_meaning(config.selection, found)}")

    store = Parts(folder, len(pool), options.part)
    made = made_of(
        identity,
        config.selection,
        found,
        engine,
        hook.collectives,
        features=options.features,
        part=options.part,
        batch=options.batch,
    )
    changed = together(lambda: parts.begin(store, made, MAY_DIFFER))
    if changed:
        say(f"goes on with other settings that change rounding alone: {'; '.join(changed)}")
    missing = together(store.missing)
    if len(missing) < len(store):
        say(f"{len(store) - len(missing)} of {len(store)} parts are there already")

    scorer = FileScorer(hook, options.features, options.batch, pad_token_id, config.run.seed, say)
    begin, num_lost = time.perf_counter(), 0
    if missing:
        target = scorer.target()
        together(lambda: parts.write_target(folder, target, len(targets)))
        say(
            f"target: loss {target.loss:.4f}, |phi| {target.squared_norm**0.5:.4g}, "
            f"{time.perf_counter() - begin:.1f} s"
        )
    num_samples = sum(len(store.positions(number)) for number in missing)
    progress = tqdm(total=num_samples, desc="score", unit="sample", disable=rank != 0, mininterval=1.0)

    def leave_if_asked() -> None:
        if requested := stop.agreed(hook.collectives):
            say(f"{requested}: stopped; the same command goes on after the last complete part")
            raise SystemExit(REQUEUE)

    def after_batch(num_scored: int, is_last: bool) -> None:
        progress.update(num_scored)
        if not is_last:  # after the last one the part is written first
            leave_if_asked()

    for number in missing:
        positions = store.positions(number)
        samples = [pool[i] for i in positions]
        scored = scorer.part(samples, after_batch)
        num_lost += together(lambda: parts.write(store.path(number), positions, samples, scored, target))  # noqa: B023
        leave_if_asked()
    progress.close()
    if num_lost:
        say(
            f"WARNING: {num_lost} of {num_samples} samples have a loss or gradient that is not finite: their "
            "scores are null"
        )
    seconds = time.perf_counter() - begin
    say(f"{num_samples} samples scored in {seconds:.1f} s; {len(pool)} in {len(store)} parts in {folder}")


def _prepare(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    run_folder.hold(folder, "output")
    return folder


def _meaning(selection: SelectionConfig, found: Optional[checkpoint.Found]) -> str:
    if not GEOMETRIES[selection.geometry].needs_moments:
        reason = "" if found else ", as there is no checkpoint with an Adam state (--resume)"
        return f"samples are measured by their plain gradients{reason}"
    assert found is not None  # other geometries need one
    return f"samples are measured under the Adam state after {found.manifest.step} updates"


def _say_what_differs(config: Config, found: checkpoint.Found, say: Narrator) -> None:
    say(f"weights and Adam state are those of {found.path}, after {found.manifest.step} updates")
    now = {
        f"data.{name}": value
        for name, value in vars(config.data).items()
        if name not in ("pool", "target", "test")
    }
    now |= {
        f"selection.{name}": getattr(config.selection, name)
        for name in ("geometry", "momentum", "last_blocks", "warmup_steps")
    }
    changed = differences(
        {name: found.manifest.identity.get(name, value) for name, value in now.items()}, now
    )
    if changed:
        say(f"measured otherwise than in its run: {'; '.join(changed.values())}")
    if needs_moments(config.selection) and found.manifest.step < config.selection.warmup_steps:
        say(
            f"WARNING: moments of {found.manifest.step} updates, fewer than selection.warmup_steps = "
            f"{config.selection.warmup_steps}, are a poor metric: take a later checkpoint, or "
            "selection.geometry = identity"
        )
