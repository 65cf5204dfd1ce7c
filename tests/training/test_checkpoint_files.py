"""Checkpoints as files: what makes one, what spoils one, and which are kept."""

import json
import os
from contextlib import suppress

import pytest
import torch

from pipeline import durable
from pipeline.reporting import records
from pipeline.reporting.records import Recorder
from pipeline.training import checkpoint_files as files
from pipeline.training.checkpoint import DurableWriter
from pipeline.training.checkpoint_files import Manifest
from tests.training.checkpoint_cases import files_up_to

CONTENT = {"model.pt": b"weights" * 1000, "zero_pp_rank_0.pt": b"moments" * 3000}


def written(folder, step: int, content=CONTENT):
    partial = folder / f"checkpoint-{step}{files.PARTIAL}"
    files.make_empty(partial)
    for name, value in content.items():
        (partial / name).write_bytes(value)
    described = {name: durable.described(partial / name) for name in content}
    return files.commit(
        partial, Manifest(step, 2, {"seed": 1, "ridge": float("inf")}, {"steps": 17}, described)
    )


def steps(folder) -> list[int]:
    return [files.step_of(path) for path in files.checkpoints(folder)]


def test_a_manifest_reads_back_as_it_was_written(tmp_path):
    final = written(tmp_path, 40)
    manifest = files.read_manifest(final)
    assert (manifest.step, manifest.world_size, manifest.records) == (40, 2, {"steps": 17})
    assert manifest.identity == {"seed": 1, "ridge": float("inf")}
    assert all(files.damage(final / name, expected) is None for name, expected in manifest.files.items())
    assert (tmp_path / files.LATEST).read_text() == "checkpoint-40"


def test_newest_first_by_number_and_nothing_else_counts(tmp_path):
    for step in (5, 100, 20):
        written(tmp_path, step)
    (tmp_path / "checkpoint-7.tmp").mkdir()
    (tmp_path / "checkpoint-8.damaged").mkdir()
    (tmp_path / "checkpoint-x").mkdir()
    for age, step in enumerate((100, 5, 20)):  # a clock that was set back has no say
        os.utime(tmp_path / f"checkpoint-{step}", (1e9 - age, 1e9 - age))
    assert steps(tmp_path) == [100, 20, 5] and steps(tmp_path / "nowhere") == []


def truncate(path):
    os.truncate(path, path.stat().st_size - 1)


def flip_one_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (truncate, "has 6,999 bytes, and 7,000 were written"),
        (flip_one_bit, "the content of model.pt has changed"),
        (os.remove, "model.pt cannot be read: No such file"),
    ],
)
def test_a_spoiled_file_is_found(tmp_path, spoil, message):
    final = written(tmp_path, 1)
    spoil(final / "model.pt")
    found = files.damage(final / "model.pt", files.read_manifest(final).files["model.pt"])
    assert message in found


@pytest.mark.parametrize("text", ["", "{", "[]", '{"step": 1}', json.dumps({"step": 1, "files": {"a": 3}})])
def test_a_spoiled_manifest_is_found(tmp_path, text):
    final = written(tmp_path, 1)
    (final / files.MANIFEST).write_text(text)
    with pytest.raises(ValueError, match="cannot be read"):
        files.read_manifest(final)


def test_a_file_on_the_disk_of_another_node_is_missed_before_there_is_a_checkpoint(tmp_path):
    partial = tmp_path / "checkpoint-3.tmp"
    files.make_empty(partial)
    with pytest.raises(ValueError, match="a file system that all nodes share"):
        files.commit(partial, Manifest(3, 2, {}, {}, {"zero_pp_rank_1.pt": (5, "x")}))
    assert steps(tmp_path) == [] and not (tmp_path / files.LATEST).exists()


@pytest.mark.parametrize(
    "keep_last, keep_every, left",
    [
        (0, 0, [60, 50, 40, 30, 20, 10]),
        (1, 0, [60]),
        (2, 0, [60, 50]),
        (2, 30, [60, 50, 30]),
        (9, 20, [60, 50, 40, 30, 20, 10]),
    ],
)
def test_the_newest_and_the_multiples_are_kept(tmp_path, keep_last, keep_every, left):
    for step in range(10, 70, 10):
        written(tmp_path, step)
    files.prune(tmp_path, keep_last, keep_every)
    assert steps(tmp_path) == left


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_kill_at_any_moment_leaves_the_old_checkpoint_or_the_new_one(tmp_path, monkeypatch, call):
    """Dies before the n-th time that something becomes lasting, for every n there is."""

    class Killed(BaseException):
        pass

    original, newest = getattr(os, call), []
    for die_at in range(1, 100):
        folder, count = tmp_path / str(die_at), 0
        written(folder, 1)

        def dying(*arguments, die_at=die_at):
            nonlocal count
            count += 1
            if count == die_at:
                raise Killed
            return original(*arguments)

        with monkeypatch.context() as patch, suppress(Killed):
            patch.setattr(os, call, dying)
            written(folder, 2)
            files.prune(folder, 1, 0)
        for path in files.checkpoints(folder):
            manifest = files.read_manifest(path)
            assert all(
                files.damage(path / name, expected) is None for name, expected in manifest.files.items()
            )
        newest.append(steps(folder)[0])
        if count < die_at:
            break
    assert {1, 2} == set(newest) and newest == sorted(newest)


def test_what_is_set_aside_is_not_found_again(tmp_path):
    written(tmp_path, 1)
    assert files.set_aside(written(tmp_path, 2)).name == "checkpoint-2.damaged"
    assert steps(tmp_path) == [1]


def test_a_full_disk_is_remembered_by_the_writer_and_not_raised(tmp_path):
    writer = DurableWriter()
    state = {"weights": torch.zeros(10_000)}
    with files_up_to(2000):
        writer.save(state, str(tmp_path / "full.pt"))
    assert "full.pt could not be written" in writer.problem and writer.files == {}
    writer.start()
    writer.save(state, str(tmp_path / "good.pt"))
    assert writer.problem is None and writer.files == {"good.pt": durable.described(tmp_path / "good.pt")}


def test_half_a_line_that_a_full_disk_left_in_the_records_is_cut(tmp_path):
    with Recorder(tmp_path) as recorder:
        recorder.step({"step": 0, "train_loss": 2.0})
        sizes = recorder.sizes()
        with (
            files_up_to(sizes["steps"] + 10),
            pytest.raises(RuntimeError, match=r"steps\.jsonl cannot be written: File too large"),
        ):
            recorder.step({"step": 1, "train_loss": 1.9})
        assert (tmp_path / "steps.jsonl").stat().st_size == sizes["steps"] + 10
    assert records.too_short(tmp_path, sizes) is None
    records.cut(tmp_path, tmp_path, sizes)
    assert [json.loads(line)["step"] for line in (tmp_path / "steps.jsonl").read_text().splitlines()] == [0]
    assert f"and {sizes['steps'] + 5} were written before" in records.too_short(
        tmp_path, {"steps": sizes["steps"] + 5}
    )
