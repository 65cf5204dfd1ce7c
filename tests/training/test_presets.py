"""Every file of ds_configs/ trains with selection on two ranks, and all of them the same; or says which
hardware it needs."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from tests import selected
from tests.processes import tails
from tests.scoring.extensions import is_built
from tests.training import preset_cases

ROOT = Path(__file__).parents[2]
PRESETS = sorted(path.stem for path in (ROOT / "ds_configs").glob("*.json"))
REFUSED = {
    "zero3_plus_plus": "zero_quantized_weights, whose kernels run on CUDA cards alone, and this run is on cpu"
}
NEEDS_BUILD = {"zero3_nvme_offload": "async_io"}
SIXTEEN_BIT = [
    *((f"zero{stage}", "fp16") for stage in (1, 2, 3)),
    ("zero3_offload", "fp16"),
    ("zero2", "bf16"),
    ("zero3", "bf16"),
]
CASES = [
    *((preset, "fp32") for preset in PRESETS if preset not in REFUSED and is_built(NEEDS_BUILD.get(preset))),
    *SIXTEEN_BIT,
]
CASES.sort(key=lambda case: case[0] == "zero3_hpz")  # makes a process group that DeepSpeed keeps: last
TOLERANCE = {
    "fp32": 1e-4,
    "bf16": 0.03,
    "fp16": 0.005,
}  # relative, of losses after two updates: sums in another order; roundings


def arguments(
    preset: str,
    precision: str,
    model_folder: str,
    data_folder: str,
    folder: Path,
    nvme_bytes: int = preset_cases.NVME_BYTES,
) -> list[str]:
    file = ROOT / "ds_configs" / f"{preset}.json"
    # a loss scale at which the tiny model does not overflow; what happens if it does is tested below
    if precision == "fp16":
        content = {**json.loads(file.read_text()), "fp16": {"initial_scale_power": 10}}
        file = folder.with_suffix(".json")
        file.write_text(json.dumps(content))
    # by default tensors of less than 1 MiB stay in memory, and with them the whole tiny model
    if "nvme" in preset:
        content = {**json.loads(file.read_text()), "aio": {"block_size": nvme_bytes}}
        file = folder.with_suffix(".json")
        file.write_text(json.dumps(content))
    settings = {
        "deepspeed": file,
        "model.name": model_folder,
        "model.lora_rank": 0,
        "data.pool": f"[{data_folder}/pool.jsonl]",
        "data.target": f"[{data_folder}/target.jsonl]",
        "data.max_tokens": 30,
        "data.cache_folder": f"{data_folder}/tokens",
        "selection.candidates_per_step": 8,
        "selection.keep_per_step": 4,
        "selection.target_per_step": 3,
        "selection.warmup_steps": 1,
        "selection.score_every": 1,
        "training.steps": 3,
        "training.micro_batch_size": 2,
        "training.learning_rate": 1e-3,
        "training.eps": 1e-5,
        "training.precision": precision,
        "run.folder": folder,
        "run.save_model": "false",
        "run.timeout_seconds": 60,
    }
    return [part for key, value in settings.items() for part in (f"--{key}", str(value))]


@pytest.fixture(scope="module")
def steps(request, run_ranks, model_folder, data_folder, tmp_path_factory):
    """Function of a preset and a precision: the step records. All are compared with zero0's."""
    root = tmp_path_factory.mktemp("presets")
    asked = {(given["preset"], given["precision"]) for given in selected.parameters(request)}
    cases = [case for case in CASES if case in asked | {("zero0", "fp32")}]
    lines = [arguments(*case, model_folder, data_folder, root / "-".join(case)) for case in cases]
    run_ranks("tests.training.preset_cases:runs", 2, timeout=1200, all_arguments=lines, nvme_folder=str(root))
    read = lambda *case: (root / "-".join(case) / "steps.jsonl").read_text().splitlines()
    return lambda *case: [json.loads(line) for line in read(*case)]


@pytest.mark.parametrize(
    "preset, precision", [(preset, "fp32") for preset in PRESETS] + [*SIXTEEN_BIT, ("zero3_offload", "fp16")]
)
def test_preset_trains_with_selection_as_stage_0_does(steps, preset, precision):
    if preset in REFUSED:
        pytest.skip(f"{preset} needs a CUDA card; that it says so is tested below")
    if not is_built(NEEDS_BUILD.get(preset)):
        pytest.skip(
            f"DeepSpeed's {NEEDS_BUILD[preset]} is not built here (libaio-dev, then minutes): python -m "
            "pipeline.doctor says how"
        )
    found, reference = steps(preset, precision), steps("zero0", "fp32")
    assert [record["warmup"] for record in found] == [True, False, False]
    assert [record["skipped"] for record in found] == [0, 0, 0]
    assert all(0 < record["cosine"] <= 1 for record in found[1:])
    for mine, theirs in zip(found, reference):
        if precision == "fp32":
            assert mine["num_kept"] == theirs["num_kept"]
            assert mine["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-4)
            assert mine["cosine"] == (theirs["cosine"] and pytest.approx(theirs["cosine"], abs=1e-3))
        elif mine["candidate_loss"] is not None:  # all candidates', whichever were kept before
            assert mine["candidate_loss"] == pytest.approx(theirs["candidate_loss"], rel=TOLERANCE[precision])


@pytest.mark.parametrize("preset", REFUSED)
def test_preset_is_refused_with_the_hardware_it_needs(launch, preset, model_folder, data_folder, tmp_path):
    ended = launch(
        "tests.processes:train",
        2,
        arguments=arguments(preset, "fp32", model_folder, data_folder, tmp_path / "run"),
    )
    assert [end.code for end in ended] == [1, 1], tails(ended)
    assert all(REFUSED[preset] in end.output for end in ended), tails(ended)


@pytest.mark.parametrize("stage", [2, 3])
def test_a_loss_scale_leaves_no_trace_in_the_gram(run_ranks, model_folder, tmp_path, stage):
    """In float16, against float32 at the same weights: 10 bits of mantissa through two layers give 3e-3 of
    the largest entry. The largest scale overflows and has to be lowered; without any, small gradients round
    to zero, so scale 1 may differ more."""
    grams = run_ranks(
        "tests.training.preset_cases:grams", 2, stage=stage, model_folder=model_folder, folder=str(tmp_path)
    )[0]
    largest = abs(grams["fp32"]).max()
    for scale in preset_cases.LOSS_SCALES:
        difference = abs(grams[scale] - grams["fp32"]).max() / largest
        assert difference < 5e-3, (
            f"loss scale {scale}: the Gram differs by {difference:.1e} of its largest entry"
        )


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_step_that_overflows_leaves_parameters_and_adam_state_alone(
    run_ranks, model_folder, tmp_path, stage
):
    outcome = run_ranks(
        "tests.training.preset_cases:overflow",
        2,
        stage=stage,
        model_folder=model_folder,
        folder=str(tmp_path),
    )[0]
    assert outcome["applied"][0] is False and outcome["applied"][-1] is True, outcome
    assert outcome["unchanged"] == [not applied for applied in outcome["applied"]], outcome
    scales = outcome["loss_scale"]
    assert all(later == earlier / 2 for earlier, later in pairwise(scales)), outcome
    assert outcome["warmup"] == [True] * len(scales) + [False], outcome


def test_sgd_trains_with_identity_geometry(run_ranks, model_folder, data_folder, tmp_path):
    file = tmp_path / "sgd.json"
    file.write_text(
        json.dumps(
            {"zero_optimization": {"stage": 2}, "optimizer": {"type": "SGD", "params": {"momentum": 0.9}}}
        )
    )
    line = arguments("zero2", "fp32", model_folder, data_folder, tmp_path / "run")
    line += ["--deepspeed", str(file), "--selection.geometry", "identity"]
    run_ranks("tests.training.preset_cases:runs", 2, all_arguments=[line], nvme_folder="")
    records = [json.loads(text) for text in (tmp_path / "run" / "steps.jsonl").read_text().splitlines()]
    assert [record["warmup"] for record in records] == [False] * 3 and all(
        record["cosine"] > 0 for record in records
    )


@pytest.mark.skipif(
    not is_built("async_io"), reason="DeepSpeed's async_io is not built here (libaio-dev, then minutes)"
)
def test_gradients_that_would_be_lost_on_the_way_from_nvme_are_refused(
    launch, model_folder, data_folder, tmp_path
):
    """As in large models, gradients are swapped one by one here; the tiny model's do not lie on blocks of a
    disk."""
    line = arguments(
        "zero3_nvme_offload", "fp32", model_folder, data_folder, tmp_path / "run", nvme_bytes=1024
    )
    ended = launch(
        "tests.training.preset_cases:runs",
        2,
        all_arguments=[line],
        nvme_folder=str(tmp_path),
        min_aio_bytes=1024,
    )
    for end in ended:
        assert end.code == 1 and "DeepSpeed 0.19.8 would lose gradients of model." in end.output, tails(ended)
