"""The checks before a run: they pass where a run would, and fail with what was found and a remedy where it
would not."""

import json
import os

import pytest

from pipeline import doctor
from tests.run_arguments import run_arguments


@pytest.fixture(autouse=True)
def no_builds(monkeypatch, tmp_path):
    """A build that died on this machine is none of these tests' business."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))


def test_a_build_that_died_is_found(tmp_path):
    lock = tmp_path / "extensions/fused_adam/lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    assert "lock" not in doctor._kernels()
    os.utime(lock, (1, 1))
    assert str(lock) in doctor._kernels()


@pytest.fixture
def examined(model_folder, data_folder, tmp_path, capsys):
    def examine(*changes: str) -> tuple[int, dict[str, dict]]:
        """Exit code, and the quick checks by name."""
        line = run_arguments(model_folder, data_folder, tmp_path / "run", *changes)
        code = doctor.main([*line, "--quick", "--world_size", "2", "--json"])
        found = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert found["passed"] == (code == 0)
        return code, {check["check"]: check for check in found["checks"]}

    return examine


def test_a_run_that_can_start_passes(examined):
    code, checks = examined()
    assert code == 0, checks
    assert "ZeRO-2, torch.float32, 2 ranks" in checks["settings"]["found"]
    assert "has a chat template" in checks["tokenizer and chat template"]["found"]
    assert (
        "predicted" in checks["memory of a rank"]["found"]
        and "GiB free" in checks["disk for checkpoints"]["found"]
    )
    assert "a step that scores costs" in checks["price of selection"]["found"]


@pytest.mark.parametrize(
    "changes, check, words",
    [
        (["--selection.keep_per_step", "3"], "settings", "keep_per_step = 3 is not divisible"),
        (["--data.pool", "[no_such_file.jsonl]"], "settings", "there is no file no_such_file.jsonl"),
        (["--model.name", "/no/such/model"], "tokenizer and chat template", "/no/such/model"),
        (["--deepspeed", "ds_configs/zero3_plus_plus.json"], "settings", "CUDA cards alone"),
    ],
)
def test_a_run_that_cannot_is_refused_with_the_reason(examined, changes, check, words):
    code, checks = examined(*changes)
    assert code == 2
    assert not checks[check]["passed"] and words in checks[check]["found"] and checks[check]["remedy"]


def test_another_deepspeed_and_a_full_disk_are_found(examined, monkeypatch):
    monkeypatch.setattr(doctor, "DEEPSPEED", "0.0.1")
    monkeypatch.setattr(doctor, "CHECKPOINTS", 10**12)
    code, checks = examined()
    assert code == 2
    assert [name for name, check in checks.items() if not check["passed"]] == [
        "versions",
        "disk for checkpoints",
    ]
    assert "pip install deepspeed==0.0.1" in checks["versions"]["remedy"]


def test_without_a_run_the_machine_alone_is_checked(capsys):
    assert doctor.main(["--quick"]) == 0
    assert "settings" not in capsys.readouterr().out


def two_ranks(arguments: list[str]) -> list[tuple]:
    """On each rank: (check, passed, found), with the clock of rank 1 five seconds late and its data file
    gone."""
    import time

    from jsonargparse import Namespace

    from pipeline.config import build_parser, parse_with

    if os.environ["RANK"] == "1":
        on_time = time.time
        time.time = lambda: on_time() - 5
        arguments = [argument.replace("target.jsonl", "gone.jsonl") for argument in arguments]
    config, _ = parse_with(build_parser(""), arguments, needs_data=False)
    lines = doctor.examine(config, Namespace(quick=False, world_size=0))
    return [(line.check, line.passed, line.found) for line in lines]


def test_ranks_are_compared_and_the_odd_one_is_named(run_ranks, model_folder, data_folder, tmp_path):
    by_rank = run_ranks(
        "tests.test_doctor:two_ranks", 2, arguments=run_arguments(model_folder, data_folder, tmp_path / "run")
    )
    found = {check: (passed, text) for check, passed, text in by_rank[0]}
    assert [check for check, (passed, _) in found.items() if not passed] == ["settings", "clocks"]
    assert "on 1 of 2 ranks, first rank 1" in found["settings"][1] and "gone.jsonl" in found["settings"][1]
    assert found["clocks"][1].startswith(("4.", "5.")) and "rank 1" in found["clocks"][1]
    assert "2 ranks on 1 host" in found["communication"][1] and "GB/s" in found["communication"][1]
