"""The planning program, from the command line to its last line."""

import json

import pytest

from pipeline import plan

pytestmark = pytest.mark.slow
SMALL = [
    "--model.name",
    "llama-1b",
    "--selection.candidates_per_step",
    "8",
    "--selection.keep_per_step",
    "8",
    "--training.micro_batch_size",
    "1",
    "--deepspeed",
    "ds_configs/zero2.json",
]


def planned(capsys, *arguments: str) -> tuple[dict, str]:
    assert plan.main([*SMALL, *arguments, "--json"]) == 0
    printed = capsys.readouterr().out
    return json.loads(printed.splitlines()[-1]), printed


def test_last_line_is_json_and_agrees_with_itself(capsys):
    found, printed = planned(
        capsys, "--model.lora_rank", "0", "--selection.last_blocks", "2", "--tokens", "256"
    )
    assert (found["model"], found["world_size"], found["hardware"], found["tokens"]) == (
        "llama-1b",
        8,
        "h100",
        256,
    )
    assert (
        found["recommended"] in found["backends"] and f"selection.backend = {found['recommended']}" in printed
    )
    for backend in found["backends"].values():
        assert sum(backend["seconds"].values()) == pytest.approx(backend["seconds_total"])
        target = backend["seconds"]["target"]
        assert (backend["seconds_total"] - target) / found["plain"]["seconds_total"] == pytest.approx(
            backend["ratio_to_plain"]
        )
    assert {variant["last_blocks"] for variant in found["variants"]} == {0, 2, 4}
    selection, step = found["backends"]["exact"]["seconds_total"], found["weighted_step"]["seconds_total"]
    assert found["price"]["scored_step"] == pytest.approx(1 + selection / step, rel=0.1)  # and the proposal
    assert "predictions" in printed


def test_a_recipe_is_planned_without_its_data(capsys):
    """Its files are not there, and its model is on a hub that cannot be reached."""
    recipe = ["--config", "launch/recipes/lora.yaml", "--model.name", "llama-7b"]
    assert plan.main(recipe) == 0
    assert "selection.backend = exact" in capsys.readouterr().out


def test_float32_is_slower_than_bf16(capsys):
    bf16, float32 = (
        planned(capsys, "--training.precision", p)[0]["plain"]["seconds_total"] for p in ("bf16", "fp32")
    )
    assert float32 > 4 * bf16


def test_model_in_a_folder(capsys, model_folder):
    found, printed = planned(capsys, "--model.name", model_folder, "--model.lora_rank", "3")
    assert found["model"] == model_folder and "33,228" not in printed


def test_methods_without_gram_cost_a_forward_or_nothing(capsys):
    def seconds(method, *more):
        found, printed = planned(capsys, "--selection.method", method, *more)
        assert found["recommended"] is None and f"selection.method = {method} forms no Gram matrix" in printed
        return found["backends"][method]["seconds_total"] / found["plain"]["seconds_total"]

    assert seconds("random") == 0
    forward, norm = seconds("max_loss"), seconds("grad_norm")
    assert 0.2 < forward < 0.5 < norm
    assert seconds("rho_loss", "--selection.reference_model", "llama-1b") == pytest.approx(
        2 * forward, rel=0.1
    )


def test_the_price_of_a_run_is_told_for_both_ends_of_its_schedule(capsys):
    found, printed = planned(capsys, "--pool_samples", "1000", "--tokens", "100")
    price = found["price"]
    fewest, most = price["scored_steps"]
    assert fewest < most == 100 and 1 <= price["unscored_step"] < price["scored_step"]
    assert price["unscored_step"] < price["run"][0] < price["run"][1]
    assert price["features"]["bytes"] == 1000 * price["features"]["bytes_per_sample"]
    assert price["features"]["seconds"] == pytest.approx(
        0.1 * price["features"]["seconds_per_million_tokens"]
    )
    assert f"{fewest} to 100 of 100 steps score" in printed and "mapped into memory" in printed


def test_an_unknown_pool_is_left_out_of_the_price_and_that_is_said(capsys):
    found, printed = planned(capsys, "--selection.score_every", "1")
    assert found["price"]["features"]["seconds"] is None
    assert found["price"]["run"] == pytest.approx([found["price"]["scored_step"]] * 2)
    assert "100 of 100 steps score" in printed and "does not contain (--pool_samples)" in printed


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model.name", "nobody/nothing"], "model.name: nobody/nothing is no folder with a model"),
        (
            ["--model.lora_targets", "[nothing_like_it]"],
            "model: no plan can be made for llama-1b: Target modules",
        ),
        (["--hardware", "abacus"], "hardware: abacus is unknown"),
        (["--world_size", "3"], "selection.candidates_per_step = 8 is not divisible by 3 ranks"),
        (["--world_size", "-1"], "world_size is -1"),
        (["--pool_samples", "-1"], "pool_samples is -1"),
    ],
)
def test_mistakes_name_their_setting(capsys, arguments, message):
    assert plan.main([*SMALL, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_error_measured_so_far_is_told(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(plan, "ERRORS", tmp_path / "plan_error.json")
    assert "not yet compared with a run here" in planned(capsys)[1]
    ratios = {
        "smallest_ratio": 0.8,
        "largest_ratio": 1.3,
        "smallest_ratio_to_plain": 0.9,
        "largest_ratio_to_plain": 1.1,
    }
    plan.ERRORS.write_text(json.dumps({"machine": {"device": "abacus"}, **ratios}))
    printed = planned(capsys)[1]
    assert "Compared with runs on abacus, predicted over measured time was 0.80 to 1.30" in printed
    assert "0.90 to 1.10" in printed
