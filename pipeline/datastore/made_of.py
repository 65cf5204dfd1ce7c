"""The origin of scores, by name; scores of another origin do not belong into the same folder."""

import hashlib
from dataclasses import asdict
from typing import Any, Optional

import torch

from pipeline.config import SelectionConfig
from pipeline.ranks.collectives import Collectives
from pipeline.scoring.moments import own_part
from pipeline.training.checkpoint import CHANGE_ROUNDING, SAYS_HOW_IT_RUNS, Found
from pipeline.training.checksum import sum_of_bits
from pipeline.versions import installed

PACKAGES = ("torch", "deepspeed", "transformers", "peft", "tokenizers", "numpy", "pyarrow")
SELECTION = (
    "geometry",
    "momentum",
    "backend",
    "projection_size",
    "last_blocks",
    "scoring_micro_batch_size",
    "logits_mib",
    "exchange_mib",
    "contraction",
)
MAY_DIFFER = (*CHANGE_ROUNDING, *SAYS_HOW_IT_RUNS, "ranks", "batch", "deepspeed.zero_optimization.stage")
"""Names that say how the work is cut, and with it the rounding."""


def made_of(
    identity: dict[str, Any],
    selection: SelectionConfig,
    found: Optional[Found],
    engine,
    collectives: Collectives,
    **more: Any,
) -> dict[str, Any]:
    """Settings, data, model, checkpoint and versions. Every rank calls it.

    Args:
        identity: as ``checkpoint.identity`` gives it for a run of these settings.
        selection: the selection's settings for the scores.
        found: the source of weights and Adam state, if not ``model.name`` alone.
        more: arguments of the program.
    """
    settings = {
        name: value
        for name, value in identity.items()
        if name.startswith(("model.", "data.", "content of "))
        and name not in ("data.rotate_targets", "content of data.test")
    }
    settings |= {
        name: identity[name] for name in ("run.seed", "deepspeed.zero_optimization.stage") if name in identity
    }
    settings |= {f"selection.{name}": asdict(selection)[name] for name in SELECTION}
    checkpoint = (
        None if found is None else f"{found.path.name}, {_digest(sorted(found.manifest.files.items()))}"
    )
    weights = next(engine.module.parameters())
    return {
        **settings,
        "checkpoint": checkpoint,
        "content of the model": content_of_model(engine, collectives),
        "dtype": str(weights.dtype),
        "device": engine.device.type,
        "ranks": collectives.world_size,
        **more,
        **{f"version of {name}": number for name, number in installed(PACKAGES).items()},
    }


def content_of_model(engine, collectives: Collectives) -> str:
    """Hash of the sums of each parameter's bits, the same for any number of ranks and any partition."""
    names, sums = [], []
    for name, parameter in engine.module.named_parameters():
        names.append(name)
        sums.append(sum_of_bits(own_part(parameter, collectives.rank)).to(engine.device))
    total = torch.stack(sums)
    if engine.zero_optimization_partition_weights():
        collectives.sum(total)
    return _digest([*zip(names, total.tolist())])


def _digest(value: list) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]
