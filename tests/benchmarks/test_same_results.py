"""Two runs are called the same only if every bit of what they found is; nothing is trained here."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from benchmarks.difference import STEP_FIELDS, first_difference
from benchmarks.same_results import PINNED, cells, judge
from benchmarks.trees import Ended, known_settings

PARAMETERS = {
    "layer.weight": torch.tensor([[0.5, 0.0], [-1.25, 3.0]]),
    "layer.bias": torch.tensor([1.0, float("nan")], dtype=torch.bfloat16),
}


def records() -> dict[str, list[dict]]:
    """Of two steps that keep two samples each."""
    step = {name: 0.1 for name in STEP_FIELDS} | {
        "candidate_loss": None,
        "grad_norm": float("nan"),
    }
    kept = {"id": "pool-0007", "weight": 0.3, "alignment": 0.0}
    return {
        "steps": [
            {**step, "step": 0, "seconds": {"total": 1.0}},
            {**step, "step": 1, "seconds": {"total": 2.0}},
        ],
        "kept": [{**kept, "step": number} for number in (0, 0, 1, 1)],
        "evaluations": [{"step": number, "name": "test", "loss": 2.5} for number in (0, 2)],
    }


def write(folder, found, parameters=PARAMETERS):
    (folder / "final").mkdir(parents=True)
    for name, lines in found.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    save_file(parameters, folder / "final" / "model.safetensors")
    return folder


@pytest.fixture
def before(tmp_path):
    return write(tmp_path / "before", records())


def test_equal_runs_are_equal_whatever_time_they_took(before, tmp_path):
    found = records()
    found["steps"][1] |= {"seconds": {"total": 9.0}, "selection_hash": "of other settings"}
    assert first_difference(before, write(tmp_path / "now", found)) is None


@pytest.mark.parametrize(
    ("record", "line", "field", "value", "words"),
    [
        (
            "kept",
            2,
            "weight",
            float(np.nextafter(0.3, 1)),
            "step 1: weight of kept sample 1: 0.3 -> 0.30000000000000004",
        ),
        ("kept", 1, "id", "pool-0008", "step 0: id of kept sample 2"),
        ("kept", 3, "alignment", -0.0, "step 1: alignment of kept sample 2: 0.0 -> -0.0"),
        ("evaluations", 1, "loss", 2.5000000000000004, "step 2: held-out loss of test"),
        *(("steps", 1, name, 0.2, f"step 1: {name}: ") for name in STEP_FIELDS),
    ],
)
def test_one_changed_value_is_found(before, tmp_path, record, line, field, value, words):
    found = records()
    found[record][line][field] = value
    assert first_difference(before, write(tmp_path / "now", found)).startswith(words)


@pytest.mark.parametrize("name", ["steps", "kept", "evaluations"])
def test_a_missing_record_is_found_from_both_sides(before, tmp_path, name):
    found = records()
    found[name].pop()
    shorter = write(tmp_path / "now", found)
    assert first_difference(before, shorter).endswith("-> nothing")
    assert "nothing -> " in first_difference(shorter, before)


def test_the_earliest_difference_is_named(before, tmp_path):
    found = records()
    found["evaluations"][1]["loss"] = 1.0
    found["steps"][0]["train_loss"] = 1.0
    found["kept"][1]["weight"] = 1.0
    assert first_difference(before, write(tmp_path / "now", found)).startswith(
        "step 0: weight of kept sample 2"
    )


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("bit", [0, 15])
def test_one_changed_bit_of_a_parameter_is_found(before, tmp_path, name, bit):
    """Of the first number's lower half; bit 15 of a bfloat16 is its sign."""
    changed = PARAMETERS[name].clone()
    changed.view(torch.int16).view(-1)[0] ^= np.int16(1 << bit if bit < 15 else -(1 << 15)).item()
    now = write(tmp_path / "now", records(), {**PARAMETERS, name: changed})
    size = changed.numel()
    assert first_difference(before, now) == f"final parameters: {name}: 1 of {size} numbers"


def test_the_sign_of_a_zero_is_found(before, tmp_path):
    changed = PARAMETERS["layer.weight"].clone()
    changed[0, 1] = -0.0
    now = write(tmp_path / "now", records(), {**PARAMETERS, "layer.weight": changed})
    assert first_difference(before, now) == "final parameters: layer.weight: 1 of 4 numbers"


def test_other_parameters_shapes_and_types_are_found(before, tmp_path):
    weight = PARAMETERS["layer.weight"]
    fewer = write(tmp_path / "fewer", records(), {"layer.weight": weight})
    flat = write(tmp_path / "flat", records(), {**PARAMETERS, "layer.weight": weight.reshape(4)})
    double = write(tmp_path / "double", records(), {**PARAMETERS, "layer.weight": weight.double()})
    assert first_difference(before, fewer) == "final parameters: layer.bias is only there before"
    assert first_difference(fewer, before) == "final parameters: layer.bias is only there now"
    assert "[2, 2] -> torch.float32 [4]" in first_difference(before, flat)
    assert "torch.float32 [2, 2] -> torch.float64" in first_difference(before, double)


def test_runs_without_parameters_are_not_equal(before):
    (before / "final" / "model.safetensors").unlink()
    assert first_difference(before, before) == "final parameters: neither run has written any"


def test_failed_runs_are_equal_only_if_both_refuse_in_the_same_words(tmp_path):
    refused, otherwise = (
        Ended("exit codes [2, 2]: keep less", True),
        Ended("exit codes [2, 2]: keep more", True),
    )
    crashed = Ended("exit codes [1, 1]: KeyError: 'a'", False)
    assert judge(refused, refused, tmp_path, tmp_path) is None
    for was, ended in ((refused, otherwise), (crashed, crashed), (refused, Ended()), (Ended(), crashed)):
        problem = judge(was, ended, tmp_path, tmp_path)
        assert (was.problem or "before: trained") in problem and (ended.problem or "now: trained") in problem


def test_every_setting_is_pinned():
    """A new setting gets a value that means what was done before there was one."""
    assert known_settings() == {*PINNED, "deepspeed", "run.folder"}
    assert all(cell.changes.keys() <= {*PINNED, "deepspeed"} for cell in cells())
