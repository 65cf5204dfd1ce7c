"""Checkpoints as files: a folder each, complete or not there at all.

    RUN/checkpoints/checkpoint-40/manifest.json    step, ranks, identity of the run, sizes of the records,
                                                   size and hash of each file
                                  *.pt             DeepSpeed's
                    checkpoint-60.tmp/             being written, or left by a run that was killed meanwhile
                    checkpoint-80.damaged/         found unusable when the run was continued
                    latest                         "checkpoint-40", for DeepSpeed's own tools

A checkpoint is written under another name, forced to the disk file by file, and renamed: only then is it one.
"""

import json
import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Optional

from pipeline import durable

FOLDER, MANIFEST, LATEST = "checkpoints", "manifest.json", "latest"
PARTIAL, DAMAGED = ".tmp", ".damaged"


@dataclass(frozen=True)
class Manifest:
    """The description that a checkpoint carries."""

    step: int
    """Optimizer steps done."""
    world_size: int
    identity: dict[str, Any]
    """Identity of the run, by name: a checkpoint with another one belongs to another run."""
    records: dict[str, int]
    """Bytes of the run's records at this step, by name."""
    files: dict[str, tuple[int, str]]
    """Size and hash of each file."""


def path_of(folder: Path, step: int) -> Path:
    return Path(folder) / f"checkpoint-{step}"


def step_of(path: Path) -> int:
    """The step in the name of a checkpoint; -1 for another name."""
    found = re.fullmatch(r"checkpoint-(\d+)", Path(path).name)
    return int(found.group(1)) if found else -1


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints in a folder, newest first; [] where there is no folder."""
    found = [path for path in Path(folder).glob("checkpoint-*") if step_of(path) >= 0 and path.is_dir()]
    return sorted(found, key=step_of, reverse=True)


def names(folder: Path) -> set[str]:
    """Files in a folder and below, relative to it."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def damage(path: Path, expected: tuple[int, str]) -> Optional[str]:
    """The damage to a file, in a sentence; None if there is none."""
    try:
        size, digest = durable.described(path)
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror}"
    if size != expected[0]:
        return f"{path.name} has {size:,} bytes, and {expected[0]:,} were written"
    return None if digest == expected[1] else f"the content of {path.name} has changed since it was written"


def read_manifest(checkpoint: Path) -> Manifest:
    """The manifest of a checkpoint. Raises ValueError where there is none that can be read."""
    try:
        content = json.loads((checkpoint / MANIFEST).read_text())
        files = {name: (size, digest) for name, (size, digest) in content.pop("files").items()}
        return Manifest(**content, files=files)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{MANIFEST} cannot be read: {error}") from error


def make_empty(partial: Path) -> None:
    """Make the folder for the next checkpoint; remove those that killed runs have left beside it."""
    for left in partial.parent.glob(f"checkpoint-*{PARTIAL}"):
        shutil.rmtree(left)
    partial.mkdir(parents=True)


def commit(partial: Path, manifest: Manifest) -> Path:
    """Make what lies in ``partial`` a checkpoint, and the latest one. Its files must be on the disk already.

    Raises ValueError if a file is not there: another node has written it to a disk of its own.
    """
    for name, (size, _) in manifest.files.items():
        if not (partial / name).is_file() or (partial / name).stat().st_size != size:
            raise ValueError(
                f"{partial / name} is not there with the {size:,} bytes that its rank has written: "
                "run.folder must lie on a file system that all nodes share"
            )
    final = partial.with_name(partial.name.removesuffix(PARTIAL))
    durable.write_text(partial / MANIFEST, json.dumps(asdict(manifest), indent=1) + "\n")
    os.rename(partial, final)
    durable.write_text(final.parent / LATEST, final.name)
    durable.sync(final.parent.parent)  # for the first checkpoint, which has made its folder
    return final


def prune(folder: Path, keep_last: int, keep_every: int) -> None:
    """Delete old checkpoints.

    The newest ``keep_last`` stay (all for 0), and those at multiples of ``keep_every`` steps (none for 0).
    """
    for path in checkpoints(folder)[keep_last:] if keep_last else []:
        if not (keep_every and step_of(path) % keep_every == 0):
            doomed = path.with_name(path.name + PARTIAL)  # so that half of it is never taken for a checkpoint
            os.rename(path, doomed)
            shutil.rmtree(doomed)


def set_aside(checkpoint: Path) -> Path:
    """Rename a checkpoint that cannot be used, so that it is neither taken nor counted again."""
    aside = checkpoint.with_name(checkpoint.name + DAMAGED)
    if aside.exists():
        shutil.rmtree(aside)
    os.rename(checkpoint, aside)
    return aside
