"""The first value that differs between two finished runs, compared bit by bit."""

import json
from pathlib import Path
from typing import Any, Optional

import torch
from safetensors.torch import load_file

STEP_FIELDS = (
    "candidate_loss",
    "target_loss",
    "residual",
    "cosine",
    "train_loss",
    "grad_norm",
    "learning_rate",
)
"""Fields of a line of steps.jsonl, in the order in which a step finds them.

selection_hash is none of them: it is of kept samples and weights, which are compared themselves, and of all
settings, of which a later revision has more.
"""
KEPT_FIELDS = ("id", "weight", "alignment")


def first_difference(before: Path, now: Path) -> Optional[str]:
    """Where the runs in two folders first differ, in words; None if all that is compared is equal.

    Compared are held-out losses, the fields above of each step and kept sample, and the final parameters.
    """
    one, other = story(before), story(now)
    for key in sorted({*one, *other}):
        # As they print, which tells apart what == does not (0.0 and -0.0), and not what it does (two NaNs).
        was, found = (repr(run[key]) if key in run else "nothing" for run in (one, other))
        if was != found:
            return f"step {key[0]}: {key[-1]}: {was} -> {found}"
    return parameter_difference(before / "final", now / "final")


def story(folder: Path) -> dict[tuple[int, int, int, str], Any]:
    """The values that a run has recorded; their keys sort in the order in which the run finds them."""
    found: dict[tuple[int, int, int, str], Any] = {}
    for line in lines(folder / "evaluations.jsonl"):
        found[line["step"], 0, 0, f"held-out loss of {line['name']}"] = line["loss"]
    for line in lines(folder / "steps.jsonl"):
        for number, name in enumerate(STEP_FIELDS):
            found[line["step"], 2, number, name] = line[name]
    num_kept = dict[int, int]()
    for line in lines(folder / "kept.jsonl"):
        num_kept[line["step"]] = number = num_kept.get(line["step"], 0) + 1
        for name in KEPT_FIELDS:
            found[line["step"], 1, number, f"{name} of kept sample {number}"] = line[name]
    return found


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def parameter_difference(before: Path, now: Path) -> Optional[str]:
    """The first parameter in the safetensors of two folders that is not the same in every bit, in words."""
    one, other = parameters(before), parameters(now)
    if not one and not other:
        return "final parameters: neither run has written any"
    for name in sorted({*one, *other}):
        if name not in one or name not in other:
            return f"final parameters: {name} is only {'there now' if name in other else 'there before'}"
        was, found = one[name], other[name]
        if was.dtype != found.dtype or was.shape != found.shape:
            return f"final parameters: {name}: {was.dtype} {[*was.shape]} -> {found.dtype} {[*found.shape]}"
        num_different = int((bits(was) != bits(found)).any(dim=-1).sum())
        if num_different:
            return f"final parameters: {name}: {num_different} of {was.numel()} numbers"
    return None


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def bits(value: torch.Tensor) -> torch.Tensor:
    """The bytes of each number, a row of them."""
    return value.contiguous().view(-1, 1).view(torch.uint8)
