# N rows of the dataset
"""The proposer of a Trainer, and its state in the Trainer's checkpoints."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from torch.utils.data import IterableDataset
from transformers.trainer_utils import has_length
from transformers.utils import logging

from pipeline.config import SelectionConfig, resolved_proposal
from pipeline.data.sample import Sample
from pipeline.hook import SelectionHook
from pipeline.integrations.dataset_stream import Rows, SamplerStream
from pipeline.proposal import features, width
from pipeline.proposal.contract import Proposal
from pipeline.proposal.learned import Learned
from pipeline.proposal.proposer import Proposer
from pipeline.proposal.schedule import schedule_of
from pipeline.proposal.uniform import Uniform
from pipeline.ranks import peers
from pipeline.ranks.once_per_node import once_per_node
from pipeline.ranks.together import together
from pipeline.selection import registry

STATE = "selection_state.pt"
logger = logging.get_logger(__name__)


def is_indexable(dataset: Any) -> bool:
    """Whether rows can be asked for by their positions; those of a stream come as they come."""
    return has_length(dataset) and not isinstance(dataset, IterableDataset)


def proposal_of(selection: SelectionConfig, dataset: Any) -> str:
    """The proposal for this dataset: ``auto`` takes a stream's rows as they come."""
    if selection.proposal == "auto" and not is_indexable(dataset):
        return "uniform"
    return resolved_proposal(selection)


def proposes(selection: SelectionConfig, dataset: Any) -> bool:
    """Whether updates take proposed rows; otherwise each scores the next ones that the loader gives."""
    method = registry.get(selection.method)
    # What says when to score is a Gram; a method without candidates looks at none.
    scores_all = selection.score_every == 1 or not method.looks_at_candidates
    scores_all |= selection.score_every == "auto" and not (method.needs_target and is_indexable(dataset))
    return not (proposal_of(selection, dataset) == "uniform" and scores_all)


def proposer_of(
    loader: Any,
    hook: SelectionHook,
    targets: Optional[Sequence[Sample]],
    max_steps: int,
    seed: int,
    timeout_seconds: float,
) -> Proposer:
    """The proposer of one training, at its first update. Every rank calls it; rank 0 alone makes features.

    Args:
        loader: of training, as accelerate has prepared it: its dataset, collator and sampler are used.
        hook: of this training.
        targets: examples of what is wanted; where features are made.
        max_steps: updates of the whole training.
        seed: of draws.
        timeout_seconds: longest that ranks wait for rank 0 without a sign that it goes on.

    Raises:
        ValueError, RuntimeError: on all ranks, where features cannot be made.
    """
    selection, ranks = hook.settings, hook.collectives
    rows = Rows(loader.dataset, loader.collate_fn)
    made = dict[str, Proposal]()

    def make(beat: Callable[[], None]) -> None:
        if ranks.rank == 0:
            made["proposal"] = _learned(rows, targets or [], selection, max_steps, beat)

    if resolved_proposal(selection) == "uniform":
        made["proposal"] = Uniform()
    elif ranks.world_size == 1:
        make(_no_beat)
    else:
        peers.meet()
        once_per_node(make, "features of train_dataset", timeout_seconds)
    stream = SamplerStream(rows, selection.candidates_per_step, loader, seed)
    proposal = made["proposal"] if ranks.rank == 0 else None
    return Proposer(stream, selection, proposal, schedule_of(selection), seed, ranks.group)


def _learned(
    rows: Rows,
    targets: Sequence[Sample],
    selection: SelectionConfig,
    max_steps: int,
    beat: Callable[[], None],
) -> Learned:
    begin = time.perf_counter()
    table = features.make(rows, targets, beat)
    share = selection.pool_share
    if share == "auto":
        share = width.pool_share(table.similarity_N, selection.keep_per_step * max_steps)
    logger.info(
        f"features of {len(rows):,} samples made in {time.perf_counter() - begin:.1f} s: updates train on "
        f"{share:.1%} of train_dataset"
    )
    return Learned(table.features_Nd, share, selection.prior)


def _no_beat() -> None:
    """Nobody waits."""


# -- checkpoints --


def save(folder: Path, proposer: Proposer, hook: SelectionHook) -> None:
    """Write what later updates depend on and the Trainer's own files do not hold. Rank 0 calls it."""
    assert isinstance(proposer.stream, SamplerStream)
    state = {
        "proposer": _as_tensors(proposer.state_dict()),
        "hook": hook.state_dict(),
        "order": proposer.stream.digest(proposer.place),
    }
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / STATE)


def load(folder: Path, proposer: Proposer, hook: SelectionHook) -> None:
    """Put proposer and hook back to where ``save`` was called. Every rank calls it.

    Raises ValueError, on all ranks, where the sampler gives another order now.
    """
    state = together(lambda: torch.load(folder / STATE, weights_only=True), hook.collectives.group)
    proposer.load_state_dict(_as_arrays(state["proposer"]))
    hook.load_state_dict(state["hook"])
    assert isinstance(proposer.stream, SamplerStream)
    if proposer.stream.digest(proposer.place) != state["order"]:
        raise ValueError(
            f"{folder} was written with another order of train_dataset than "
            f"{type(proposer.stream.sampler).__name__} gives now: resume with the same rows, seed and "
            "train_sampling_strategy, or begin anew"
        )


def refuse_unfit_checkpoint(folder: Path, does_propose: bool) -> None:
    """Refuse to go on otherwise than a checkpoint was written: its updates have read other rows.

    Every rank calls it. Raises ValueError, on all ranks.
    """
    did_propose = together((folder / STATE).is_file)
    if did_propose == does_propose:
        return
    was, now = ("", "no ") if did_propose else ("no ", "")
    raise ValueError(
        f"{folder} has {was}{STATE}, and by selection.proposal and selection.score_every updates now take "
        f"{now}proposed rows: resume with the settings that it was written with (without proposals: uniform "
        "and 1), or begin anew"
    )


def _as_tensors(state: Any) -> Any:
    """``state`` with tensors and plain numbers for numpy's: torch reads these back without running code."""
    if isinstance(state, dict):
        return {key: _as_tensors(value) for key, value in state.items()}
    if isinstance(state, np.generic):
        return state.item()
    return torch.from_numpy(state) if isinstance(state, np.ndarray) else state


def _as_arrays(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: _as_arrays(value) for key, value in state.items()}
    return state.numpy() if isinstance(state, torch.Tensor) else state
