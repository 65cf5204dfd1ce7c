"""The training program with model.packing, on two ranks: the same run as with padding."""

import json
from pathlib import Path

import pytest

from tests.run_arguments import run_arguments


@pytest.fixture(scope="module")
def folders(run_ranks, model_folder, data_folder, tmp_path_factory) -> dict[bool, Path]:
    """Run folders, packed or not."""
    root = tmp_path_factory.mktemp("packing")
    found = {is_packed: root / str(is_packed) for is_packed in (True, False)}
    changes = [
        "--model.lora_rank",
        "0",
        "--training.steps",
        "4",
        "--training.evaluate_every",
        "0",
        "--deepspeed",
        "ds_configs/zero3.json",
    ]
    arguments = [
        run_arguments(model_folder, data_folder, folder, *changes, "--model.packing", str(is_packed).lower())
        for is_packed, folder in found.items()
    ]
    run_ranks("tests.training.train_cases:runs", 2, all_arguments=arguments)
    return found


def records(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def test_packing_selects_the_same_samples_and_trains_to_the_same_losses(folders):
    """float32; steps of 1e-2 make of rounding 1e-4."""
    packed, padded = (records(folders[is_packed], "steps") for is_packed in (True, False))
    kept = [[line["id"] for line in records(folders[is_packed], "kept")] for is_packed in (True, False)]
    assert kept[0] == kept[1] and len(kept[0]) == 16
    for one, other in zip(packed, padded):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-3)
    for one, other in zip(*(records(folders[is_packed], "evaluations") for is_packed in (True, False))):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)


def test_a_run_says_whether_it_is_packing(folders):
    assert [
        json.loads((folders[is_packed] / "environment.json").read_text())["is_packed"]
        for is_packed in (True, False)
    ] == [
        True,
        False,
    ]
