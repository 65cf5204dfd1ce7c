"""The folder of a run and its files besides records: environment, pool counts, final model."""

import json
import os
import platform
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Optional

import torch
import yaml
from filelock import FileLock, Timeout
from peft import PeftModel

from pipeline import config as configuration
from pipeline import durable
from pipeline.config import CHANGE_NO_RESULT, Config
from pipeline.data.mixture import Mixture
from pipeline.data.sample import Sample
from pipeline.data.token_file import TokenFile
from pipeline.reporting import records
from pipeline.settings import differences, flatten
from pipeline.training import checkpoint_files as files
from pipeline.training.checkpoint import Found
from pipeline.training.proposing import Setup
from pipeline.versions import installed

FINISHED, LOCK, CONFIG = "finished.json", "lock", "config.yaml"
BEFORE_A_RUN = {LOCK, durable.partial(Path(CONFIG)).name, f"{CONFIG}.tmp"}
"""Names that a killed process may have left before its folder was a run's; the last is an earlier
version's."""
_held: dict[Path, FileLock] = {}
PACKAGES = (
    "torch",
    "deepspeed",
    "transformers",
    "peft",
    "datasets",
    "numpy",
    "scipy",
    "flash-attn",
    "flash-attn-4",
)


def is_finished(config: Config, now: dict[str, Any]) -> bool:
    """Whether this very run has ended already, with ``resume`` auto.

    Raises ValueError if another one has, in the same folder.
    """
    path = Path(config.run.folder) / FINISHED
    if config.resume != "auto" or not path.is_file():
        return False
    changed = differences(json.loads(path.read_text())["identity"], now)
    if changed:
        raise ValueError(
            f"run.folder: {path.parent} holds a finished run of other settings "
            f"({'; '.join(changed.values())})"
        )
    return True


def prepare(config: Config, merged: dict, found: Optional[Found], say: Callable[[str], None]) -> Path:
    """The run folder with the resolved configuration in it, and with DeepSpeed's (``merged``).

    It is emptied of anything else unless ``found`` lies in it, and held against other processes until this
    one ends. Raises ValueError if the folder holds an earlier run, or something else.
    """
    folder = Path(config.run.folder)
    goes_on = found is not None and found.run_folder.resolve() == folder.resolve()
    if not goes_on and folder.exists() and {path.name for path in folder.iterdir()} - BEFORE_A_RUN:
        if config.resume == "auto":
            _refuse_all_but_a_beginning(folder, config)
            say(f"the earlier run in {folder} ended before its first checkpoint and starts again")
        elif not ((folder / CONFIG).is_file() and (folder / "steps.jsonl").is_file()):
            raise ValueError(f"run.folder: {folder} is not empty and holds no run; name another folder")
        elif not config.run.overwrite:
            raise ValueError(
                f"run.folder: {folder} holds an earlier run; name another folder or set run.overwrite, or "
                "set resume to auto to go on with it"
            )
    folder.mkdir(parents=True, exist_ok=True)
    hold(folder, "run.folder")
    if not goes_on:
        # The configuration goes last, as it tells whose folder this is.
        for path in sorted(folder.iterdir(), key=lambda path: path.name == CONFIG):
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()
    configuration.save(config, folder / CONFIG)
    _write(folder / "deepspeed.json", merged)
    return folder


def _refuse_all_but_a_beginning(folder: Path, config: Config) -> None:
    """Raise ValueError where the folder holds more than the beginning of this run.

    Without a checkpoint the folder is emptied.
    """
    if not (folder / CONFIG).is_file():
        raise ValueError(f"run.folder: {folder} is not empty and holds no run; name another folder")
    before = dict(flatten(yaml.safe_load((folder / CONFIG).read_text())))
    changes = differences(before, dict(flatten(configuration.plain(config))))
    changed = [text for name, text in changes.items() if name not in CHANGE_NO_RESULT]
    if changed or (folder / "final").exists():
        what = f"an earlier run of other settings ({'; '.join(changed)})" if changed else "a finished run"
        raise ValueError(f"run.folder: {folder} holds {what} and no checkpoint; name another folder")


def hold(folder: Path, setting: str) -> None:
    """Lock the folder against other processes until this one ends, be it killed.

    Two jobs in one folder would mix their records: a requeued job may start while the old one still writes.
    Raises ValueError, naming the ``setting``, where another process holds it.
    """
    if folder in _held:
        _held.pop(folder).release()
    # No marker file takes the place of the kernel's lock: it would outlive a process that is killed.
    lock = FileLock(folder / LOCK, timeout=0, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"{setting}: another process writes in {folder}; wait for its end, or name another folder"
        ) from error
    except OSError as error:
        print(
            f"{setting}: {folder} cannot be locked ({error.strerror}): let no other job write to it",
            file=sys.stderr,
        )
    _held[folder] = lock


def continue_records(folder: Path, found: Found, world_size: int, say: Callable[[str], None]) -> None:
    """Cut the records to the checkpoint, and write down that the run was continued.

    Those of another run are copied first.
    """
    dropped = records.cut(found.run_folder, folder, found.manifest.records)
    for path in files.checkpoints(folder / files.FOLDER):
        if files.step_of(path) > found.manifest.step:
            say(f"{path} is set aside as {files.set_aside(path).name}")
    line = {
        "step": found.manifest.step,
        "checkpoint": str(found.path),
        "ranks": world_size,
        "ranks_before": found.manifest.world_size,
        "dropped": dropped,
        "unusable": found.unusable,
    }
    with open(folder / "resumes.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
    say(f"goes on from {found.path}, {dropped['steps']} steps after it are done again")


def write_finished(folder: Path, steps: int, now: dict[str, Any]) -> None:
    durable.write_text(
        folder / FINISHED, json.dumps({"steps": steps, "identity": now}, indent=1, ensure_ascii=False) + "\n"
    )


def write_environment(folder: Path, facts: dict) -> None:
    machine = {"machine": platform.machine(), "cpus": os.cpu_count(), "python": platform.python_version()}
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    _write(folder / "environment.json", {**facts, **machine, "versions": installed(PACKAGES)})


def write_setup(folder: Path, setup: Setup) -> None:
    """Write down what was done before the first step, and its price."""
    _write(folder / "setup.json", asdict(setup))


def write_pool(
    folder: Path,
    names: list[str],
    pool: TokenFile,
    targets: Iterable[Sample],
    mixture: Optional[Mixture] = None,
) -> None:
    """Write down what an epoch of the pool holds, and the sizes of the files in ``names``, its sources.

    With a mixture a sample counts as often as it comes in an epoch on average: shares are the candidates'.
    """
    times = (
        [count / size for count, size in zip(mixture.places, mixture.sizes)] if mixture else [1] * len(names)
    )
    by_source: dict[str, float] = defaultdict(int)
    by_damage: dict[str, float] = defaultdict(int)
    for part, factor in zip(pool.manifest.parts, times, strict=True):
        for found, amounts in ((by_source, part.by_source), (by_damage, part.by_damage)):
            for key, amount in amounts.items():
                found[key] += amount * factor
    _write(
        folder / "pool.json",
        {
            "file_bytes": {name: Path(name).stat().st_size for name in names if Path(name).is_file()},
            "num_samples": len(pool),
            "by_source": by_source,
            "by_damage": by_damage,
            "target_sources": sorted({sample.source for sample in targets}),
        },
    )


def save_model(engine, tokenizer, folder: Path, is_rank_0: bool) -> None:
    """Save the adapter (LoRA) or the model as safetensors, for peft or transformers to load.

    All ranks call it, since ZeRO-3 gathers.
    """
    gathered = None
    if engine.zero_optimization_partition_weights():
        gathered = engine._zero3_consolidated_16bit_state_dict(
            exclude_frozen_parameters=isinstance(engine.module, PeftModel)
        )
    if is_rank_0:
        state = gathered if gathered is not None else engine.module.state_dict()
        engine.module.save_pretrained(folder, state_dict=state, safe_serialization=True)
        tokenizer.save_pretrained(folder)


def _write(path: Path, value: dict) -> None:
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    durable.write_text(path, text, errors=records.ENCODING["errors"])
