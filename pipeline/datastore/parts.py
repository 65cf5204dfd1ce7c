# N samples of a part, D features
"""A folder of scores, in which every part is complete.

    FOLDER/manifest.json                    all that decides the scores, by name; numbers of samples and parts
           target.parquet                   the target's own row
           parts/part-00000.parquet         a fixed number of samples, in the order of the pool
                 .part-00001.parquet.tmp    being written, or left by a process that was killed meanwhile

Readers of a folder of Parquet files find nothing but parts in parts/, and pass over names that begin with a
dot. A part is written under another name, forced to the disk, and renamed: only then is it one.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from pipeline import durable
from pipeline.data.sample import Sample
from pipeline.datastore.scorer import Scored, Target
from pipeline.settings import differences
from pipeline.training import universal
from pipeline.training.run_folder import LOCK

MANIFEST, TARGET, PARTS = "manifest.json", "target.parquet", "parts"


@dataclass(frozen=True)
class Parts:
    """The parts of a folder, and the samples of the pool that each holds."""

    folder: Path
    num_samples: int
    samples_per_part: int

    def __len__(self) -> int:
        return -(-self.num_samples // self.samples_per_part)

    def path(self, number: int) -> Path:
        return self.folder / PARTS / f"part-{number:05d}.parquet"

    def positions(self, number: int) -> range:
        """Positions in the pool of a part's samples."""
        return range(
            number * self.samples_per_part, min((number + 1) * self.samples_per_part, self.num_samples)
        )

    def missing(self) -> list[int]:
        """Numbers of the parts that are still to be made.

        Raises ValueError for a part that is there with another number of rows than it should have.
        """
        return [number for number in range(len(self)) if not self._is_there(number)]

    def _is_there(self, number: int) -> bool:
        path = self.path(number)
        if not path.exists():
            return False
        try:
            rows = pa.parquet.read_metadata(path).num_rows
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path} cannot be read ({error}): delete it, and it is made again") from error
        if rows != len(self.positions(number)):
            raise ValueError(
                f"{path} has {rows} rows instead of {len(self.positions(number))}: "
                "delete it, and it is made again"
            )
        return True


def begin(parts: Parts, made_of: dict[str, Any], may_differ: tuple[str, ...]) -> list[str]:
    """Write the manifest, or compare with the one that is there. Returns a sentence on each difference.

    Raises ValueError where the folder holds something else, or scores that differ beyond ``may_differ``.
    """
    path = parts.folder / MANIFEST
    if not path.exists():
        ours = (LOCK, durable.partial(path).name)
        # a killed program may have left a checkpoint that it converted
        found = (path.name for path in parts.folder.iterdir())
        others = sorted(name for name in found if name not in ours and not universal.is_left(name))
        if others:
            raise ValueError(
                f"output: {parts.folder} is not empty and holds no {MANIFEST} ({', '.join(others[:3])}): "
                "name another folder"
            )
        content = {
            "num_samples": parts.num_samples,
            "samples_per_part": parts.samples_per_part,
            "num_parts": len(parts),
            "made_of": made_of,
        }
        durable.write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        return []
    try:
        before = json.loads(path.read_text(encoding="utf-8"))["made_of"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"output: {path} cannot be read ({error}): name another folder") from error
    changed = differences(before, json.loads(json.dumps(made_of)))
    forbidden = [text for name, text in changed.items() if name not in may_differ]
    if forbidden:
        raise ValueError(
            f"output: {parts.folder} holds scores made of something else ({'; '.join(forbidden)}): name "
            "another folder, or start with what they were made of"
        )
    return list(changed.values())


def write_target(folder: Path, target: Target, num_samples: int) -> None:
    columns = {
        "num_samples": pa.array([num_samples], pa.int64()),
        "loss": pa.array([target.loss], pa.float64()),
        "squared_norm": pa.array([target.squared_norm], pa.float64()),
        **_features(None if target.features_D is None else target.features_D[None], np.array([False])),
    }
    _write_table(folder / TARGET, pa.table(columns))


def write(path: Path, positions: range, samples: list[Sample], scored: Scored, target: Target) -> int:
    """Write one part. Returns the number of its samples without a score: loss or gradient is not finite."""
    is_lost_N = ~(
        np.isfinite(scored.loss_N) & np.isfinite(scored.squared_norm_N) & np.isfinite(scored.alignment_N)
    )

    def number(values_N: np.ndarray, is_null_N: np.ndarray) -> pa.Array:
        return pa.array(values_N, pa.float64(), mask=is_null_N)

    def text(values: Iterable[str]) -> pa.Array:
        return pa.array([value or None for value in values], pa.string())

    with np.errstate(divide="ignore", invalid="ignore"):
        cosine_N = scored.alignment_N / np.sqrt(scored.squared_norm_N * target.squared_norm)
    columns = {
        "position": pa.array(positions, pa.int64()),
        "id": text(sample.id for sample in samples),
        "source": text(sample.source for sample in samples),
        "damage": text(sample.damage for sample in samples),
        "num_tokens": pa.array([len(sample.input_ids) for sample in samples], pa.int32()),
        "num_supervised": pa.array([sample.num_supervised for sample in samples], pa.int32()),
        "loss": number(scored.loss_N, ~np.isfinite(scored.loss_N)),
        "squared_norm": number(scored.squared_norm_N, is_lost_N),
        "alignment": number(scored.alignment_N, is_lost_N),
        "cosine": number(cosine_N, is_lost_N | ~np.isfinite(cosine_N)),
        **_features(scored.features_ND, is_lost_N),
    }
    _write_table(path, pa.table(columns))
    return int(is_lost_N.sum())


def _features(features_ND: Optional[np.ndarray], is_lost_N: np.ndarray) -> dict[str, pa.Array]:
    if features_ND is None:
        return {}
    values = pa.array(np.where(is_lost_N[:, None], 0, features_ND).ravel(), pa.float32())
    return {
        "features": pa.FixedSizeListArray.from_arrays(values, features_ND.shape[1], mask=pa.array(is_lost_N))
    }


def _write_table(path: Path, table: pa.Table) -> None:
    buffer = pa.BufferOutputStream()
    pa.parquet.write_table(table, buffer, compression="zstd")
    path.parent.mkdir(exist_ok=True)
    durable.write_bytes(path, buffer.getvalue())
