"""Checkpoints of a run, written so that a kill at any moment costs steps, never the run.

They hold everything that later steps depend on. What follows from seed and step alone (the plain order of the
pool, warm-up, draws) needs no more than the number of steps done. Besides that there are
DeepSpeed's own files (parameters, Adam state, schedule), what the proposer has read and learned, random
generators, the state behind warnings, and the sizes of the records.
"""

import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

from pipeline import config as configuration
from pipeline import durable
from pipeline.config import CHANGE_NO_RESULT, Config
from pipeline.data.sample import Sample, digest
from pipeline.data.token_file import TokenFile
from pipeline.hook import SelectionHook
from pipeline.proposal.proposer import Proposer
from pipeline.ranks.together import together
from pipeline.reporting import records
from pipeline.settings import differences, flatten
from pipeline.training import checkpoint_files as files
from pipeline.training import universal
from pipeline.training.checkpoint_files import Manifest
from pipeline.training.journal import Journal

# Compared by content, or under another name.
COMPARED_OTHERWISE = ("deepspeed", "data.pool", "data.target", "data.test")
# These change how the work is cut, and with it the rounding, but not the method: a run may go on with
# other values, and says so.
CHANGE_ROUNDING = (
    "training.micro_batch_size",
    "training.evaluate_every",
    "training.evaluation_micro_batch_size",
    "training.evaluation_answers",
    "selection.scoring_micro_batch_size",
    "selection.exchange_mib",
    "selection.logits_mib",
    "selection.contraction",
    "model.gradient_checkpointing",
    "model.attention",
    "deepspeed.train_micro_batch_size_per_gpu",
    "deepspeed.gradient_accumulation_steps",
)
SAYS_HOW_IT_RUNS = ("model.attention", "model.packing", "model.gradient_checkpointing")
DECIDE_WEIGHTS = (
    "deepspeed.bf16.enabled",
    "deepspeed.fp16.enabled",
    "deepspeed.zero_optimization.stage",
    "deepspeed.optimizer.type",
)
SAYS_NOTHING_OF_THE_RUN = (
    "steps_per_print",
    "tensorboard",
    "wandb",
    "csv_monitor",
    "comet",
    "wall_clock_breakdown",
    "memory_breakdown",
    "flops_profiler",
    "comms_logger",
    "dump_state",
    "checkpoint",
)


@dataclass(frozen=True)
class Found:
    """A usable checkpoint."""

    path: Path
    manifest: Manifest
    unusable: list[str]
    """Newer ones that cannot be used, with the reason."""

    @property
    def run_folder(self) -> Path:
        return self.path.parent.parent


def identity(
    config: Config, merged: dict, pool: Sequence[Sample], targets: Sequence[Sample], tests: Sequence[Sample]
) -> dict[str, Any]:
    """Identity of a run, by name: settings, DeepSpeed's configuration, data.

    Raises RuntimeError where the ranks have read other data.
    """
    settings = dict(flatten(configuration.plain(config)))
    found = {
        name: value
        for name, value in settings.items()
        if name not in (*CHANGE_NO_RESULT, *COMPARED_OTHERWISE)
    }
    found |= {
        f"deepspeed.{n}": v
        for n, v in flatten({k: v for k, v in merged.items() if k not in SAYS_NOTHING_OF_THE_RUN})
    }
    for name, samples in (("pool", pool), ("target", targets), ("test", tests)):
        digests = [None] * dist.get_world_size()
        content = samples.manifest.content if isinstance(samples, TokenFile) else digest(samples)
        dist.all_gather_object(digests, f"{len(samples)} samples {content}")
        if len(set(digests)) > 1:
            raise RuntimeError(
                f"the ranks have read different samples from data.{name}, was a file replaced meanwhile? "
                + ", ".join(f"rank {rank}: {value}" for rank, value in enumerate(digests))
            )
        found[f"content of data.{name}"] = digests[0]
    if config.data.pool_weights:
        assert isinstance(pool, TokenFile)
        found["samples of each name in data.pool"] = pool.sizes  # a mixture is over names
    return found


def find(config: Config, now: dict[str, Any], say: Callable[[str], None]) -> Optional[Found]:
    """The newest good checkpoint that ``resume`` allows; None where the run starts from the beginning.

    One that is damaged, or of a run with another identity than ``now``, is passed over and said.
    Raises ValueError where checkpoints are there and none can be used, or where ``resume`` names a
    folder that has none. All ranks call it.
    """
    if config.resume is None:
        return None
    own = Path(config.run.folder) / files.FOLDER
    wanted = config.resume
    paths = together(lambda: _candidates(wanted, own))
    way_out = (
        "Name another run.folder to start a run of these settings, or set run.overwrite without resume to "
        "delete what is there"
    )
    found = _newest_good(paths, lambda path: _read(path, now), wanted, way_out, say)
    if found is not None:
        changed = differences(found.manifest.identity, now)
        if found.manifest.world_size != dist.get_world_size():
            say(
                f"{found.path} was written by {found.manifest.world_size} ranks, and there are "
                f"{dist.get_world_size()}: sums are rounded otherwise"
            )
        if changed:
            say(
                f"{found.path} was written with other settings that change rounding alone: "
                f"{'; '.join(changed.values())}"
            )
    return found


def find_weights(resume: str, now: dict[str, Any], say: Callable[[str], None]) -> Found:
    """The checkpoint at ``resume``, or the newest good one of the run there, for its weights and Adam state.

    Its model and precision must be those of ``now``; the rest is free. Raises ValueError where none can be
    used. All ranks call it.
    """
    given = Path(resume)
    paths = [given] if files.step_of(given) >= 0 else together(lambda: _of_run(given))
    way_out = (
        f"The settings of its run are in {paths[0].parent.parent / 'config.yaml'}: give that as --config"
    )
    found = _newest_good(paths, lambda path: _read_weights(path, now), resume, way_out, say)
    assert found is not None  # there are paths
    return found


def _newest_good(
    paths: list[Path],
    examine: Callable[[Path], tuple[Optional[Manifest], Optional[str]]],
    resume: str,
    way_out: str,
    say: Callable[[str], None],
) -> Optional[Found]:
    """The first of ``paths`` that is whole and passes ``examine``; None where there are none at all."""
    unusable = list[str]()
    for path in paths:
        manifest, problem = together(partial(examine, path))
        problem = problem or _damage(path, manifest)
        if problem is None:
            return Found(path, manifest, unusable)
        unusable.append(f"{path}: {problem}")
        say(f"CHECKPOINT NOT USED: {unusable[-1]}")
    if unusable:
        raise ValueError(
            f"resume = {resume}: none of {len(unusable)} checkpoints can be used ({'; '.join(unusable)}). "
            f"{way_out}"
        )
    return None


def _candidates(resume: str, own: Path) -> list[Path]:
    """Checkpoints to try, best first."""
    if resume == "auto":
        return files.checkpoints(own)
    given = Path(resume)
    if files.step_of(given) < 0:
        return _of_run(given)
    newer = [path.name for path in files.checkpoints(own) if files.step_of(path) > files.step_of(given)]
    if given.parent.resolve() == own.resolve() and newer:
        raise ValueError(
            f"resume = {resume} would lose the steps up to {newer[0]} in the same folder: set resume to auto "
            "to go on from the newest good one, or name another run.folder to branch off"
        )
    return [given]


def _of_run(folder: Path) -> list[Path]:
    found = files.checkpoints(folder / files.FOLDER) or files.checkpoints(folder)
    if not found:
        raise ValueError(
            f"resume: there is no checkpoint in {folder}, nor in {folder / files.FOLDER}: a run writes one "
            "every training.save_every steps, and when it is asked to stop"
        )
    return found


def _read(path: Path, now: dict[str, Any]) -> tuple[Optional[Manifest], Optional[str]]:
    """The manifest of a checkpoint, and the reason against going on from it, as far as one rank can tell."""
    try:
        manifest = files.read_manifest(path)
    except ValueError as error:
        return None, str(error)
    forbidden = [
        text for name, text in differences(manifest.identity, now).items() if name not in CHANGE_ROUNDING
    ]
    if forbidden:
        return manifest, f"it belongs to another run ({'; '.join(forbidden)})"
    return manifest, records.too_short(path.parent.parent, manifest.records)


def _read_weights(path: Path, now: dict[str, Any]) -> tuple[Optional[Manifest], Optional[str]]:
    """The manifest of a checkpoint, and the reason against its weights for the model of ``now``."""
    try:
        manifest = files.read_manifest(path)
    except ValueError as error:
        return None, str(error)
    changed = differences(manifest.identity, now)
    forbidden = [text for name, text in changed.items() if _is_about_weights(name)]
    return manifest, f"its model is another one ({'; '.join(forbidden)})" if forbidden else None


def _is_about_weights(name: str) -> bool:
    """Whether the weights of a checkpoint fit only a model with the same value of this setting."""
    return name in DECIDE_WEIGHTS or (name.startswith("model.") and name not in SAYS_HOW_IT_RUNS)


def _damage(path: Path, manifest: Manifest) -> Optional[str]:
    """The damage to its files, in sentences; None where there is none. The ranks share the reading."""
    mine = sorted(manifest.files.items())[dist.get_rank() :: dist.get_world_size()]
    found = [files.damage(path / name, expected) for name, expected in mine]
    everywhere: list[list[str]] = [[]] * dist.get_world_size()
    dist.all_gather_object(everywhere, [problem for problem in found if problem])
    problems = [problem for part in everywhere for problem in part]
    return "; ".join(problems) or None


def for_other_ranks(merged: dict, found: Optional[Found], world_size: int) -> dict:
    """DeepSpeed's configuration for an engine that is to load ``found``.

    At stage 0 every rank holds all, and any number of ranks reads it.
    """
    stage = merged.get("zero_optimization", {}).get("stage", 0)
    if found is None or found.manifest.world_size == world_size or stage == 0:
        return merged
    return {**merged, "checkpoint": {**merged.get("checkpoint", {}), "load_universal": True}}


def load_engine(engine, found: Found, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Load weights, Adam state and schedule of ``found`` into ``engine``. Returns the rest of the checkpoint.

    Where it was written by another number of ranks, the engine must have been made with ``for_other_ranks``,
    and ``folder`` is where its universal form lies meanwhile. Every rank calls it.
    """
    path, stage = found.path, engine.zero_optimization_stage()
    is_universal = engine.load_universal_checkpoint()
    if is_universal:
        path = universal.convert(path, folder, stage, say)
    loaded, state = engine.load_checkpoint(
        str(path.parent),
        tag=path.name,
        load_module_strict=False,  # frozen parameters are the base model's
    )
    if loaded is None or engine.global_steps != found.manifest.step:
        raise RuntimeError(
            f"DeepSpeed has loaded {loaded} with {engine.global_steps} steps done, not {found.path}"
        )
    state = state["selection"]
    if is_universal:
        universal.repair(engine, state["groups"])
        dist.barrier()  # until all have read it
        together(lambda: universal.remove(path))
    return state


class Checkpoints:
    """Writes and reads the checkpoints of one run. Every rank calls every method, at the same step."""

    def __init__(
        self,
        folder: Path,
        hook: SelectionHook,
        proposer: Proposer,
        config: Config,
        now: dict[str, Any],
        say: Callable[[str], None],
    ):
        """Raises ValueError where a rank does not see ``folder``."""
        self.folder, self.settings = folder / files.FOLDER, config.training
        engine: Any = hook.engine  # DeepSpeed's: an Engine alone writes no checkpoints
        self.hook, self.proposer, self.engine = hook, proposer, engine
        self.identity, self.say = now, say
        blind = [
            rank for rank, sees in enumerate(hook.collectives.gather_objects(folder.is_dir())) if not sees
        ]
        if blind:
            raise ValueError(
                f"run.folder = {folder} is not there for ranks {blind}: it must lie on a file system that "
                "all nodes share"
            )
        self.writer = self.engine.checkpoint_engine = DurableWriter()
        # A copy of a program that DeepSpeed has anyway (deepspeed.utils.zero_to_fp32): on a full disk rank 0
        # would fail over it while the others wait for rank 0.
        self.engine._copy_recovery_script = lambda folder: None

    def is_due(self, step: int) -> bool:
        return self.settings.save_every > 0 and step % self.settings.save_every == 0

    def save(self, step: int, journal: Optional[Journal]) -> bool:
        """Write the checkpoint after ``step`` updates. Returns False, and says the reason, where that fails.

        ``journal`` is rank 0's.
        """
        begin, path = time.perf_counter(), files.path_of(self.folder, step)
        sizes = journal.recorder.sizes() if journal else {}
        partial = path.with_name(path.name + files.PARTIAL)
        try:
            together(lambda: files.make_empty(partial))
            problem, written = self._write(partial, journal.watch.state_dict() if journal else None)
            manifest = Manifest(step, self.hook.collectives.world_size, self.identity, sizes, written)
            if problem is None:
                together(lambda: files.commit(partial, manifest))
        except OSError as error:
            problem = str(error)
        if problem is not None:
            together(lambda: shutil.rmtree(partial, ignore_errors=True))
            self.say(
                f"NO CHECKPOINT at step {step}: {problem}. The run goes on; the one before stays the latest"
            )
            return False
        try:
            together(lambda: files.prune(self.folder, self.settings.keep_last, self.settings.keep_every))
        except OSError as error:
            self.say(f"older checkpoints stay: {error}")
        size = sum(size for size, _ in written.values())
        self.say(f"step {step}: {path.name}, {size / 2**20:,.1f} MiB in {time.perf_counter() - begin:.1f} s")
        return True

    def load(self, found: Found) -> Optional[dict]:
        """The state of the journal's watch, which is rank 0's.

        Puts the run back to the moment when ``found`` was written. Where another number of ranks has written
        it, the engine must have been made with ``for_other_ranks``.
        """
        state = load_engine(self.engine, found, self.folder, self.say)
        _set_generators(state["generators"][self.hook.collectives.rank % len(state["generators"])])
        self.hook.load_state_dict(state["hook"])
        self.proposer.load_state_dict(state["proposer"])
        return state["watched"]

    def _write(
        self, partial: Path, watched: Optional[dict]
    ) -> tuple[Optional[str], dict[str, tuple[int, str]]]:
        """The failures on all ranks, in a sentence, and size and hash of each file."""
        state = {
            "generators": self.hook.collectives.gather_objects(_generators()),
            "groups": universal.groups(self.engine),
            "watched": watched,
            "hook": self.hook.state_dict(),
            "proposer": self.proposer.state_dict(),
        }
        self.writer.start()
        try:
            self.engine.save_checkpoint(
                str(partial.parent),
                tag=partial.name,
                client_state={"selection": state},
                save_latest=False,
                exclude_frozen_parameters=True,
            )
        # A file has bypassed the writer, and the others wait in DeepSpeed's barrier for this rank.
        except OSError as error:
            raise RuntimeError(
                f"{partial} could not be written, and the run cannot go on: {error}"
            ) from error
        rank, world_size = self.hook.collectives.rank, self.hook.collectives.world_size
        gathered = self.hook.collectives.gather_objects((self.writer.problem, self.writer.files))
        # Under NVMe offload DeepSpeed copies the optimizer's files past the writer.
        known = {name for _, part in gathered for name in part}
        others = together(lambda: sorted(files.names(partial) - known))
        self.writer.start()
        self.writer.take_over(partial, others[rank::world_size])
        gathered += self.hook.collectives.gather_objects((self.writer.problem, self.writer.files))
        problems = [
            f"rank {number % world_size}: {problem}"
            for number, (problem, _) in enumerate(gathered)
            if problem
        ]
        return "; ".join(problems) or None, {
            name: described for _, part in gathered for name, described in part.items()
        }


class DurableWriter(TorchCheckpointEngine):
    """DeepSpeed's checkpoint writer, which forces files to the disk and remembers them with their hashes.

    A failure is remembered too instead of raised: in DeepSpeed's next barrier the other ranks would wait.
    """

    def __init__(self):
        super().__init__()
        self.start()

    def start(self) -> None:
        self.files: dict[str, tuple[int, str]] = {}
        self.problem: Optional[str] = None

    def save(self, state_dict, path: str) -> None:
        try:
            with open(path, "wb") as file:
                torch.save(state_dict, file)
            durable.sync(Path(path))
            self.files[Path(path).name] = durable.described(Path(path))
        except (OSError, RuntimeError) as error:  # torch wraps what the file says into a RuntimeError
            self.problem = f"{Path(path).name} could not be written: {error}"

    def take_over(self, folder: Path, names: list[str]) -> None:
        """Force files that others have written to the disk, and remember them too."""
        try:
            for name in names:
                durable.sync(folder / name)
                self.files[name] = durable.described(folder / name)
        except OSError as error:
            self.problem = f"{error.filename or folder} could not be forced to the disk: {error.strerror}"


def _generators() -> dict[str, Any]:
    """State of this rank's random generators: dropout draws from torch's, code of the hub from any."""
    return {
        "torch": torch.get_rng_state(),
        "device": get_accelerator().get_rng_state(),
        "numpy": np.random.get_state(),
        "python": random.getstate(),
    }


def _set_generators(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    get_accelerator().set_rng_state(state["device"])
    np.random.set_state(state["numpy"])
    random.setstate(state["python"])
