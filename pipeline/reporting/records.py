"""The records of a run: JSON lines written as it goes, read back as tables.

| file | one line is |
| --- | --- |
| ``steps.jsonl`` | an optimizer step: losses, match with the target, counts, seconds by stage |
| ``kept.jsonl`` | a sample that a step has kept: source, damage, weight, alignment |
| ``passed.jsonl`` | a scoring pass: the candidates that it left out, and their alignment |
| ``evaluations.jsonl`` | a measurement of a held-out loss |

Beside them stand ``config.yaml``, ``environment.json``, ``pool.json`` and ``setup.json`` (the price of what
was prepared once), written once when the run starts. Earlier versions wrote no ``setup.json``, and scored
every step without saying so.
"""

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import pandas as pd
import yaml

from pipeline import durable

ENCODING: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace"}
"""Arguments to open a file of JSON: half of a surrogate pair, which ids may hold and UTF-8 cannot, becomes
the escape that JSON has for it."""
SECONDS = ("candidates", "target", "factors", "exchange", "gram", "solve", "update", "total")
"""Stages whose wall time a step record may carry under ``seconds``."""

# Fields that a line must hold, then those that it may hold; a table always has a column for each.
STEPS = (
    ("step",),
    (
        "epoch",
        "warmup",
        "scored",
        "window",
        "predicted_correlation",
        "cosine_of_proposed",
        "cosine_of_explored",
        "method",
        "num_candidates",
        "num_kept",
        "effective_kept",
        "train_loss",
        "candidate_loss",
        "target_loss",
        "residual",
        "cosine",
        "fallback",
        "dropped",
        "target_dropped",
        "out_of_memory",
        "learning_rate",
        "grad_norm",
        "skipped",
        "loss_scale",
        "zero_moment_share",
        "bytes_sent",
        "candidate_tokens",
        "trained_tokens",
        "target_mixed",
        "selection_hash",
        "cpu_seconds",
        "warnings",
        "seconds",
        "memory_mib",
    ),
)
KEPT = ("step", "id", "weight"), ("source", "damage", "alignment")
PASSED = ("step", "ids"), ("alignment",)
EVALUATIONS = ("step", "name", "loss"), ("num_samples", "num_tokens", "accuracy", "num_answers")
LOGS = ("steps", "kept", "passed", "evaluations")
NO_SETUP = {"seconds": 0.0, "cpu_seconds": 0.0}
"""What a run without ``setup.json``, of an earlier version, has paid before its first step."""
BLIND = ("random", "full")
"""Methods that take samples without looking at them."""


def too_short(folder: Path, sizes: dict[str, int]) -> Optional[str]:
    """A sentence on the first file that does not reach its size in ``sizes``, or has no line that ends there;
    None where all are whole."""
    for name, size in sizes.items():
        path = Path(folder) / f"{name}.jsonl"
        found = path.stat().st_size if path.is_file() else 0
        if found < size:
            return f"{path} has {found:,} bytes, and {size:,} were written before"
        with open(path, "rb") as file:
            file.seek(max(0, size - 1))
            if size and file.read(1) != b"\n":
                return f"{path} has no line that ends at byte {size:,}: it was changed"
    return None


def cut(source: Path, folder: Path, sizes: dict[str, int]) -> dict[str, int]:
    """Leave in ``folder`` the first ``sizes`` bytes of the files of ``source``, which may be the same folder.
    Returns how many lines each file has lost by this."""
    dropped = {}
    for name, size in sizes.items():
        path = Path(folder) / f"{name}.jsonl"
        if Path(source).resolve() != Path(folder).resolve():
            shutil.copyfile(Path(source) / path.name, path)
        with open(path, "r+b") as file:
            file.seek(size)
            dropped[name] = sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
            file.truncate(size)
        durable.sync(path)
    return dropped


class Recorder:
    """Writer of a run's records, for rank 0 alone: each call appends to a file, which it flushes.

    >>> with Recorder("runs/latest") as recorder:
    ...     recorder.step({"step": 0, "train_loss": 2.1})
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        # All are opened at once: an empty file tells a reader "none yet", a missing one "not a run".
        self._files = {name: open(self.folder / f"{name}.jsonl", "a", **ENCODING) for name in LOGS}  # noqa: SIM115

    def step(self, record: dict) -> None:
        self._append("steps", [record])

    def kept(self, records: list[dict]) -> None:
        self._append("kept", records)

    def passed(self, record: dict) -> None:
        self._append("passed", [record])

    def evaluation(self, record: dict) -> None:
        self._append("evaluations", [record])

    def sizes(self) -> dict[str, int]:
        """Bytes of each file, by name; all of them are on the disk itself when this returns."""
        paths = {name: self.folder / f"{name}.jsonl" for name in self._files}
        for name, path in paths.items():
            with self._writing(name):
                durable.sync(path)
        return {name: path.stat().st_size for name, path in paths.items()}

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _append(self, name: str, records: list[dict]) -> None:
        # NaN is not JSON, and a null in its place would hide that the run has failed. The trainer has stopped
        # by then.
        for record in records:
            for field, value in _leaves(record):
                if isinstance(value, float) and not math.isfinite(value):
                    raise ValueError(
                        f"{self.folder / name}.jsonl, step {record.get('step')}: {field} is {value}. "
                        "Only finite numbers are recorded: stop the run before, "
                        "or record null where nothing was measured"
                    )
        lines = [json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records]
        with self._writing(name):
            self._files[name].write("".join(lines))
            self._files[name].flush()

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RuntimeError(
                f"{self.folder / name}.jsonl cannot be written: {error.strerror}. A run without its records "
                "is worth nothing: make room, then resume = auto goes on from the newest checkpoint"
            ) from error


@dataclass(frozen=True)
class Run:
    """One run as it was recorded. A value that was not recorded is NaN in the tables."""

    folder: Path
    config: dict
    environment: dict
    pool: dict
    setup: dict
    """``seconds`` and ``cpu_seconds`` of what the run had to prepare once, as retrieval or features."""
    steps: pd.DataFrame
    """One row a step; ``seconds`` is spread over ``seconds_<stage>``, 0 for a stage that the step did not
    have, with the sum of stages for an absent total, and ``memory_mib`` over ``memory_mib_<stage>``."""
    kept: pd.DataFrame
    """One row a sample that was trained on, with ``warmup`` of its step, and ``looked_at``: whether it was
    scored and chosen, and not taken as it was proposed. ``damage`` is '' where it is unknown."""
    evaluations: pd.DataFrame
    """One row a measured loss, ordered by step; of two measurements at one step the later one counts."""
    passed: Optional[pd.DataFrame] = None
    """One row a candidate that a scoring pass left out: step, id, alignment; None where the run recorded no
    such file."""
    deepspeed: Optional[dict] = None
    """The merged configuration that DeepSpeed was given; None where it was not recorded."""
    resumes: Sequence[dict] = ()
    """One record for each time that the run was continued: the checkpoint from which it started."""

    @property
    def method(self) -> str:
        return self.config["selection"]["method"]


def read_run(folder: Path) -> Run:
    """The run in a folder. Raises ValueError, with file and line number, where something is missing or
    broken."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(
            f"{folder}: there is no such folder; name the folder of a run (run.folder of its configuration)"
        )
    config = yaml.safe_load(_text(folder / "config.yaml"))
    if not isinstance(config, dict) or "method" not in (config.get("selection") or {}):
        raise ValueError(
            f"{folder / 'config.yaml'}: selection.method is missing; this is not the configuration of a run"
        )
    steps = _read_lines(folder / "steps.jsonl", *STEPS)
    if steps.empty:
        raise ValueError(
            f"{folder / 'steps.jsonl'}: no step is recorded; the run ended before its first step, "
            "look at its log"
        )
    kept = _read_lines(folder / "kept.jsonl", *KEPT)
    evaluations = _read_lines(folder / "evaluations.jsonl", *EVALUATIONS)
    steps = _spread(_spread(steps, "seconds", SECONDS), "memory_mib", SECONDS[:-1])
    stages = [f"seconds_{stage}" for stage in SECONDS[:-1]]
    steps["seconds_total"] = steps["seconds_total"].fillna(steps[stages].sum(axis=1, min_count=1))
    # A stage that a step did not go through took no time, and means over steps must know.
    steps[stages] = steps[stages].fillna(0.0).where(steps["seconds_total"].notna())
    steps["warmup"] = steps["warmup"].fillna(False).astype(bool)
    kept["warmup"] = kept["step"].isin(steps.loc[steps["warmup"], "step"])
    kept["looked_at"] = kept["step"].isin(steps.loc[_looks(steps, config["selection"]["method"]), "step"])
    for column in ("source", "damage"):
        kept[column] = kept[column].fillna("").astype(str)
    return Run(
        folder=folder,
        config=config,
        environment=_read_object(folder / "environment.json"),
        pool=_read_object(folder / "pool.json"),
        steps=steps,
        kept=kept,
        evaluations=evaluations.drop_duplicates(["name", "step"], keep="last").sort_values(
            "step", ignore_index=True
        ),
        deepspeed=_read_object(folder / "deepspeed.json") if (folder / "deepspeed.json").is_file() else None,
        passed=_read_passed(folder / "passed.jsonl"),
        resumes=_records(folder / "resumes.jsonl", ("step",)) if (folder / "resumes.jsonl").is_file() else [],
        setup=_read_setup(folder / "setup.json"),
    )


def labels(runs: list[Run]) -> list[str]:
    """A short, distinct name for each run: its method, with its folder where several runs share a method."""
    methods = [run.method for run in runs]
    names = [
        run.method if methods.count(run.method) == 1 else _with_method(run, run.folder.name) for run in runs
    ]
    return [
        name if names.count(name) == 1 else _with_method(run, str(run.folder))
        for run, name in zip(runs, names)
    ]


def _with_method(run: Run, folder: str) -> str:
    return folder if run.method in folder else f"{run.method} ({folder})"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(
            f"{path}: the file is missing; a run that has started writes it, so is {path.parent} a run?"
        ) from None


def _read_object(path: Path) -> dict:
    try:
        value = _parse(_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not JSON ({error.msg})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _read_setup(path: Path) -> dict:
    if not path.is_file():
        return NO_SETUP.copy()
    found = _read_object(path)
    for name in NO_SETUP:
        if not isinstance(found.get(name), (int, float)):
            raise ValueError(f"{path}: {name} is {found.get(name)!r}, expected a number of seconds")
    return found


def _looks(steps: pd.DataFrame, method: str) -> pd.Series:
    """Whether the method has looked at the samples of each step."""
    if steps["scored"].notna().any():
        return steps["scored"] == 1
    return pd.Series(method not in BLIND, steps.index)


def _read_lines(path: Path, required: tuple[str, ...], optional: tuple[str, ...]) -> pd.DataFrame:
    return pd.DataFrame(_records(path, required), columns=[*required, *optional])


def _read_passed(path: Path) -> Optional[pd.DataFrame]:
    if not path.is_file():
        return None
    rows = [
        (line["step"], name, alignment)
        for line in _records(path, PASSED[0])
        for name, alignment in zip(
            line["ids"], line.get("alignment") or [None] * len(line["ids"]), strict=True
        )
    ]
    return pd.DataFrame(rows, columns=["step", "id", "alignment"])


def _records(path: Path, required: tuple[str, ...]) -> list[dict]:
    records = []
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = _parse(line)
        except ValueError as error:
            raise ValueError(
                f"{path}:{number}: not a line of JSON ({error}). "
                "A run that was killed can leave half a line: remove it"
            ) from None
        missing = [key for key in required if not isinstance(record, dict) or record.get(key) is None]
        if missing:
            raise ValueError(
                f"{path}:{number}: no {', '.join(missing)} in this record; was it written by another version?"
            )
        records.append(record)
    return records


def _parse(text: str):
    """A JSON value. Halves of surrogate pairs stay the escapes that they are in the file, since tables hold
    nothing but UTF-8."""
    value = json.loads(text, parse_constant=_refuse)
    return _in_utf_8(value) if "\\ud" in text.lower() else value


def _in_utf_8(value):
    if isinstance(value, dict):
        return {_in_utf_8(key): _in_utf_8(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_in_utf_8(item) for item in value]
    return value.encode(**ENCODING).decode() if isinstance(value, str) else value


def _refuse(constant: str):
    raise ValueError(f"{constant} is not a number in JSON")


def _spread(steps: pd.DataFrame, field: str, stages: tuple[str, ...]) -> pd.DataFrame:
    """``steps`` with the objects of a column spread over columns of their own, one a stage."""
    values = pd.DataFrame(
        [v if isinstance(v, dict) else {} for v in steps[field]], columns=list(stages), dtype=float
    )
    return steps.drop(columns=field).join(values.add_prefix(f"{field}_"))


def _leaves(value, name=""):
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item, name)
    else:
        yield name, value
