"""The proposer of a run: features or a ranking of its pool are made once, then every step asks it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Optional

import numpy as np

from pipeline.config import RANKINGS, Config, num_mixed, samples_per_step
from pipeline.data.mixture import Mixture
from pipeline.data.sample import Sample
from pipeline.data.stream import CandidateStream
from pipeline.data.token_cache import folder_of
from pipeline.data.token_file import TokenFile
from pipeline.hook import SelectionHook
from pipeline.proposal import feature_file, width
from pipeline.proposal.contract import Proposal
from pipeline.proposal.feature_file import Made
from pipeline.proposal.learned import Learned
from pipeline.proposal.proposer import Proposer
from pipeline.proposal.rankings import registry as rankings
from pipeline.proposal.rankings.contract import Context, Ranked
from pipeline.proposal.retrieval import Retrieval
from pipeline.proposal.schedule import schedule_of
from pipeline.proposal.seed import read_scores
from pipeline.proposal.uniform import Uniform
from pipeline.ranks.narrator import Narrator
from pipeline.ranks.once_per_node import once_per_node
from pipeline.training.ranking_model import RankingModel


@dataclass(frozen=True)
class Setup:
    """What was done before the first step, and its price, which is part of the selection's."""

    what: str = "nothing"
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    """Of all ranks together."""
    is_reused: bool = False
    """An earlier run has made it; the price is what that run paid."""
    pool_share: Optional[float] = None
    """Share of the pool that is trained on; None where all of it is."""
    note: str = ""
    """A sentence for the log."""
    num_seeded: int = 0
    """Samples that begin with a cosine of ``selection.seed_scores``; their price was paid elsewhere."""


def proposer_of(
    config: Config, hook: SelectionHook, stream: CandidateStream, targets: Sequence[Sample], say: Narrator
) -> tuple[Proposer, Setup]:
    """The proposer that the settings ask for. Every rank calls it; rank 0 alone holds features.

    Raises ValueError, on all ranks, where features or a ranking cannot be made.
    """
    selection = config.selection
    proposal: Optional[Proposal] = Uniform()
    setup = Setup()
    if selection.proposal == "learned":
        proposal, setup = _learned(config, hook, stream, targets)
    elif selection.proposal in RANKINGS:
        proposal, setup = _ranked(config, hook, stream, targets)
    if setup.pool_share is not None:
        when = "by an earlier run, " if setup.is_reused else ""
        say(
            f"{setup.what} of {len(stream.pool):,} samples made {when}in {setup.seconds:.1f} s: steps train "
            f"on {setup.pool_share:.1%} of data.pool"
        )
    if setup.note:
        say(setup.note)
    if selection.score_every == "auto" and hook.method.looks_at_candidates and not hook.scorer.judges_halves:
        what = "every 8th step scores" if hook.method.needs_target else "every step scores"
        say(
            f"selection.score_every = auto has nothing to go by: {hook.method.name} with these settings does "
            f"not measure the target in two halves (docs/method.md), so {what}; a number fixes it"
        )
    if setup.num_seeded:
        say(
            f"{setup.num_seeded:,} of {len(stream.pool):,} samples begin with their cosine in "
            f"{selection.seed_scores}, which was measured, and paid, elsewhere"
        )
    schedule, group = schedule_of(selection), hook.collectives.group
    mixed = num_mixed(config)
    return Proposer(stream, selection, proposal, schedule, config.run.seed, group, mixed), setup


def _learned(
    config: Config, hook: SelectionHook, stream: CandidateStream, targets: Sequence[Sample]
) -> tuple[Optional[Proposal], Setup]:
    made, setup = _features(config, hook, stream, targets)
    assert setup.pool_share is not None
    proposal = Learned(made.table.features_Nd, setup.pool_share, config.selection.prior) if made else None
    if config.selection.seed_scores is not None:
        setup = replace(setup, num_seeded=_seed(config, hook, stream.pool, proposal))
    return proposal, setup


def _seed(config: Config, hook: SelectionHook, pool: Sequence[Sample], proposal: Optional[Learned]) -> int:
    """Let the proposal begin with the scores that the settings name. Returns how many samples have one.

    A checkpoint holds all that comes of it, so a run that goes on is not moved by another file there.
    """

    def work(beat: Callable[[], None]) -> int:
        assert proposal is not None and isinstance(pool, TokenFile) and config.selection.seed_scores
        positions_n, cosine_n = read_scores(Path(config.selection.seed_scores), pool)
        proposal.seed(positions_n, cosine_n, config.selection.candidates_per_step)
        return len(positions_n)

    return _on_rank_0(config, hook, work)


def _features(
    config: Config, hook: SelectionHook, stream: CandidateStream, targets: Sequence[Sample]
) -> tuple[Optional[Made], Setup]:
    """Features of the pool, on rank 0 alone, and what all ranks know of them."""
    pool = stream.pool
    assert isinstance(pool, TokenFile) and isinstance(targets, TokenFile)
    found: Optional[Made] = None

    def work(beat: Callable[[], None]) -> dict:
        nonlocal found
        found = feature_file.obtain(pool, targets, folder_of(config.data), beat)
        share = config.selection.pool_share
        if share == "auto":
            num_trained = samples_per_step(config) * config.training.steps
            share = width.pool_share(found.table.similarity_N, num_trained, _places(stream.mixture))
        cost = found.seconds, found.cpu_seconds, found.is_reused
        return asdict(Setup("features", *cost, share, found.note))

    setup = Setup(**_on_rank_0(config, hook, work))
    return found, setup


def _ranked(
    config: Config, hook: SelectionHook, stream: CandidateStream, targets: Sequence[Sample]
) -> tuple[Optional[Proposal], Setup]:
    """A ranking of the pool, of which the best are trained on."""
    pool = stream.pool
    ranking, setup, seed = rankings.get(config.selection.proposal), Setup(), config.run.seed
    share: Optional[float] = None
    if config.selection.pool_share != "auto":
        share = config.selection.pool_share
    elif ranking.name != "oracle":  # which says itself how many are good
        _, setup = _features(config, hook, stream, targets)
        share = setup.pool_share
    begin, cpu = time.perf_counter(), time.process_time()
    ranked: Optional[Ranked] = None
    if ranking.needs_model:
        size, rate = config.training.evaluation_micro_batch_size, config.training.learning_rate
        model = RankingModel(hook.engine, hook.pad_token_id, size, rate, hook.is_packed)
        ranked = ranking.rank(pool, targets, Context(seed, model))
        num_good = None
    else:

        def work(beat: Callable[[], None]) -> Optional[int]:
            nonlocal ranked
            ranked = ranking.rank(pool, targets, Context(seed))
            return ranked.num_good

        num_good = _on_rank_0(config, hook, work)
    taken = int(num_good or 0) if share is None else max(1, round(share * len(pool)))
    if taken < config.selection.candidates_per_step:
        raise ValueError(
            f"selection.proposal = {ranking.name} takes {taken} of {len(pool):,} samples of data.pool, fewer "
            f"than selection.candidates_per_step = {config.selection.candidates_per_step}: raise "
            "selection.pool_share, or lower that"
        )
    cpu_seconds = sum(hook.collectives.gather_objects(time.process_time() - cpu))
    setup = replace(
        setup,
        what=f"the ranking {ranking.name}",
        seconds=setup.seconds + time.perf_counter() - begin,
        cpu_seconds=setup.cpu_seconds + cpu_seconds,
        pool_share=taken / len(pool),
    )
    is_first = hook.collectives.rank == 0
    return Retrieval(ranked.order_N, taken) if is_first and ranked is not None else None, setup


def _places(mixture: Optional[Mixture]) -> Optional[np.ndarray]:
    """How often each sample of the pool comes in an epoch on average; None where each comes once."""
    if mixture is None or mixture.is_plain:
        return None
    return np.repeat(np.array(mixture.places) / np.array(mixture.sizes), mixture.sizes)


def _on_rank_0(config: Config, hook: SelectionHook, work: Callable[[Callable[[], None]], Any]) -> Any:
    """The result of ``work`` on rank 0, for all; while it goes on, nobody gives up waiting."""
    is_first = hook.collectives.rank == 0
    own = once_per_node(
        lambda beat: work(beat) if is_first else None,
        f"selection.proposal = {config.selection.proposal}",
        config.run.timeout_seconds,
    )
    return hook.collectives.gather_objects(own)[0]
