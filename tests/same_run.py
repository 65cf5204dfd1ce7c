"""Whether two run folders hold the same, bit by bit."""

import json
from pathlib import Path

import numpy as np
import torch


def compare(undisturbed: Path, other: Path) -> list[str]:
    """Where two finished runs differ; [] if they are equal bit by bit."""
    found = [
        f"{name}.jsonl"
        for name in ("steps", "kept", "passed", "evaluations")
        if records(undisturbed, name) != records(other, name)
    ]
    found += differences(states(undisturbed), states(other))
    for path in sorted((undisturbed / "final").glob("*.safetensors")):
        found += (
            [] if path.read_bytes() == (other / "final" / path.name).read_bytes() else [f"final/{path.name}"]
        )
    return found


def records(run_folder: Path, name: str) -> list[dict]:
    """The lines of a record but for their seconds and memory."""
    lines = [json.loads(line) for line in (run_folder / f"{name}.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key not in ("seconds", "cpu_seconds", "memory_mib")}
        for line in lines
    ]


def states(run_folder: Path) -> dict:
    """All that is in the last checkpoint, by file."""
    latest = run_folder / "checkpoints" / (run_folder / "checkpoints/latest").read_text()
    return {path.name: torch.load(path, weights_only=False) for path in sorted(latest.glob("*.pt"))}


def differences(one, other, where: str = "") -> list[str]:
    """Names of what differs in two nests of tensors and values."""
    if isinstance(one, dict) and isinstance(other, dict):
        alone = sorted({str(name) for name in one} ^ {str(name) for name in other})
        inner = [
            text
            for name in one
            if name in other
            for text in differences(one[name], other[name], f"{where}.{name}")
        ]
        return [f"{where}: only in one of them: {alone}"] * bool(alone) + inner
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        if len(one) != len(other):
            return [f"{where}: {len(one)} and {len(other)} items"]
        return [
            text for i, pair in enumerate(zip(one, other)) for text in differences(*pair, f"{where}[{i}]")
        ]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.dtype == other.dtype and torch.equal(one, other):
            return []
        return [f"{where}: {one.dtype} {tuple(one.shape)} and {other.dtype} {tuple(other.shape)} differ"]
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return [] if np.array_equal(one, other) else [f"{where}: arrays {one.shape} and {other.shape} differ"]
    return [] if str(one) == str(other) else [f"{where}: {str(one)[:80]} and {str(other)[:80]}"]
