"""The grid's YAML is as strict as a recipe, and its cells are the runs it says."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from pipeline import config as configuration
from pipeline.comparison import grid as grids
from pipeline.comparison import running
from pipeline.comparison.grid import changed

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture
def valid(data_folder):
    return {
        "variants": ["filter_then_weight", "random"],
        "seeds": [0, 3],
        "folder": "runs/grid",
        "targets": {
            "sums": {"target": [f"{data_folder}/target.jsonl"], "test": [f"{data_folder}/test.jsonl"]}
        },
        "base": {
            "data": {"pool": [f"{data_folder}/pool.jsonl"]},
            "selection.candidates_per_step": 32,
            "training.steps": 6,
        },
    }


@pytest.fixture
def parse(tmp_path):
    def parse(settings, *arguments):
        file = tmp_path / "grid.yaml"
        file.write_text(yaml.safe_dump(settings, sort_keys=False))
        return grids.parse("", ["--config", str(file), *arguments])

    return parse


REFUSED = {
    "unknown key": ({"repeats": 3}, "repeats"),
    "unknown key of a target": ({"targets": {"sums": {"target": [], "test": [], "dev": []}}}, "dev"),
    "wrong type": ({"seeds": ["many"]}, "seeds"),
    "unknown setting": (
        {"variants": {"a": {"selection.ridg": 1}}},
        "a: Group 'selection' does not accept option 'ridg'",
    ),
    "unknown method": ({"variants": ["best"]}, "selection.method"),
    "contradiction in a cell": (
        {"variants": {"a": {"selection.keep_per_step": 99}}},
        "a, seed 0: selection.keep_per_step = 99 is more than",
    ),
    "seed twice": ({"seeds": [1, 1]}, "seeds holds a value twice: 1, 1"),
    "no variants": ({"variants": []}, "variants is empty"),
    "no folder name": ({"variants": {"a/b": {}}}, "'a/b' names a folder"),
    "setting of the grid": (
        {"variants": {"a": {"run.seed": 1}}},
        "variants.a sets run.seed, which the grid makes of 'seeds'",
    ),
    "other held-out tokens": (
        {"variants": {"a": {}, "b": {"data.max_tokens": 9}}},
        "data.max_tokens is 9 in b and 512 in a: their losses are not of the same tokens",
    ),
    "other model": (
        {"variants": {"a": {}, "b": {"model.revision": "main"}}},
        "model.revision is main in b and None in a",
    ),
    "budget of nothing": ({"budgets": [0.5, 0]}, "budgets holds 0"),
    "budget twice": ({"budgets": [0.5, 0.5]}, "budgets holds a value twice: 0.5, 0.5"),
    "budgets of whose time": (
        {"budgets": [0.5], "variants": ["top_k", "full"]},
        "no variant draws at random from the whole pool",
    ),
    "unknown clock": ({"clock": "sun"}, "clock"),
    "nothing in parallel": ({"parallel": 0}, "parallel is 0"),
    "other columns": (
        {"variants": {"a": {}, "b": {"data.columns": {"q": "prompt"}}}},
        "data.columns.q is prompt in b and None in a",
    ),
    "does not divide": ({"ranks": 3}, "candidates_per_step = 32 is not divisible by 3 ranks"),
    "missing recipe": ({"base": "nowhere.yaml"}, "base: there is no file nowhere.yaml"),
    "no test": ({"targets": {"sums": {"target": ["demo:target"], "test": []}}}, "targets.sums.test is empty"),
    "secret": (
        {"folder": "runs/${HF_TOKEN}"},
        "names a secret, HF_TOKEN, whose value would be saved with every cell",
    ),
    "variable not set": (
        {"folder": "${NOT_SET_ANYWHERE}/runs"},
        "needs the environment variable NOT_SET_ANYWHERE, which is not set",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_grid_ends_with_code_2_and_names_the_place(name, valid, parse, capsys):
    changes, message = REFUSED[name]
    with pytest.raises(SystemExit) as ended:
        parse({**valid, **changes})
    assert ended.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_every_variant_runs_with_every_seed_on_every_target(valid, parse):
    valid["targets"]["more"] = valid["targets"]["sums"]
    _, cells, notes = parse(valid)
    assert [(c.seed, c.target, c.variant) for c in cells] == [
        (seed, target, variant)
        for seed in (0, 3)
        for target in ("sums", "more")
        for variant in ("filter_then_weight", "random")
    ]
    assert len({cell.folder for cell in cells}) == 8
    assert all(
        cell.config.training.steps == 6
        and cell.config.run.seed == cell.seed
        and not cell.config.run.save_model
        for cell in cells
    )
    assert [cell.config.selection.method for cell in cells[:2]] == ["filter_then_weight", "random"]
    assert notes == [
        "Looks at 32 candidates at scored steps and trains on up to 48 samples: filter_then_weight.",
        "Looks at 32 candidates a step and trains on up to 48 samples: random.",
        "Variants do not see the same candidates: selection.proposal is learned in filter_then_weight; "
        "uniform in random.",
    ]


def test_a_target_may_have_a_pool_of_its_own(valid, parse, tmp_path, monkeypatch):
    monkeypatch.setenv("POOLS", str(tmp_path))
    (tmp_path / "more.jsonl").write_text(json.dumps({"prompt": "1 + 1 =", "completion": " 2"}))
    valid["targets"]["sums"]["pool"] = ["${POOLS}/more.jsonl"]
    assert [cell.config.data.pool for cell in parse(valid)[1]] == [[f"{tmp_path}/more.jsonl"]] * 4
    del valid["base"]["data"]  # a pool that no target would use
    assert len(parse(valid)[1]) == 4


def test_no_variant_sets_the_pool_where_a_target_has_its_own(valid, parse, capsys):
    valid["targets"]["sums"]["pool"] = valid["base"]["data"]["pool"]
    with pytest.raises(SystemExit):
        parse({**valid, "variants": {"a": {}, "b": {"data.pool": ["demo:pool"]}}})
    assert "variants.b sets data.pool, which the grid makes of 'targets'" in capsys.readouterr().err


def test_a_variant_is_stronger_than_the_command_line_and_that_than_the_base(valid, parse):
    valid["variants"] = {"a": {}, "b": {"selection": {"ridge": 0.25}}}
    valid["base"]["selection.ridge"] = 0.5
    _, cells, _ = parse(valid, "--selection.ridge", "0.75", "--training.steps=7", "--seeds", "[5]")
    assert [(c.config.selection.ridge, c.config.training.steps, c.seed) for c in cells] == [
        (0.75, 7, 5),
        (0.25, 7, 5),
    ]
    with pytest.raises(SystemExit):
        parse(valid, "--selection.ridg", "1")
    with pytest.raises(SystemExit):
        parse(valid, "--run.seed", "1")


def test_a_recipe_is_a_base_and_variables_stand_for_their_values(valid, parse, tmp_path, monkeypatch):
    (tmp_path / "recipe.yaml").write_text(
        "data: {pool: ['${POOL}'], target: [nowhere.jsonl]}\nrun: {folder: elsewhere, seed: 9}\n"
    )
    monkeypatch.setenv("POOL", valid["base"]["data"]["pool"][0])
    monkeypatch.setenv("WHERE", str(tmp_path))
    grid, cells, _ = parse({**valid, "base": "${WHERE}/recipe.yaml", "folder": "${WHERE}/grid"})
    assert cells[0].config.data.pool == valid["base"]["data"]["pool"] and cells[0].config.run.seed == 0
    assert cells[0].folder == tmp_path / "grid/sums/filter_then_weight/seed_0"
    assert grids.written(grid)["folder"] == "${WHERE}/grid", "results would name paths of this machine"


def test_samples_per_step_that_differ_are_said(valid, parse):
    valid["base"] |= {"selection.proposal": "uniform", "selection.score_every": 4}
    full = {"selection.method": "full", "selection.score_every": "auto"}
    _, _, notes = parse({**valid, "variants": {"full": full, "a": {}, "b": {}}})
    assert notes == [
        "Looks at 32 candidates a step and trains on up to 192 samples: full.",
        "Looks at 32 candidates at every 4th step and trains on up to 48 samples: a, b.",
    ]


def test_other_candidates_are_allowed_and_said(valid, parse, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text(Path(valid["base"]["data"]["pool"][0]).read_text())
    variants = {"a": {}, "b": {"data.pool": [str(other)]}, "c": {"selection.candidates_per_step": 16}}
    _, _, notes = parse({**valid, "variants": variants})
    pool = valid["base"]["data"]["pool"]
    assert notes == [
        "Looks at 32 candidates at scored steps and trains on up to 48 samples: a, b.",
        "Looks at 16 candidates at scored steps and trains on up to 48 samples: c.",
        f"Variants do not see the same candidates: data.pool is {pool} in a, c; ['{other}'] in b.",
    ]


def test_only_settings_that_change_results_count_as_changes(valid, parse, tmp_path):
    _, (cell, *_), _ = parse(valid)
    configuration.save(cell.config, tmp_path / "config.yaml")
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert changed(cell.config, saved) == []
    saved["run"]["folder"] = "elsewhere"
    del saved["data"]["pool_weights"]  # of a cell that is older than the setting
    assert changed(cell.config, saved) == []
    saved["selection"]["ridge"] = 7
    del saved["training"]["eps"]
    assert changed(cell.config, saved) == ["selection.ridge: 7 -> 1.0", "training.eps: - -> 1e-08"]


def test_a_cell_is_known_again_that_was_run_before_presets_had_names(valid, parse, tmp_path, monkeypatch):
    """Its saved copy and its contents have the preset's path; of another preset it is another cell."""
    monkeypatch.chdir(ROOT)
    cell = parse({**valid, "folder": str(tmp_path / "grid")})[1][0]
    cell.folder.mkdir(parents=True)
    for path, is_known in (("ds_configs/zero2.json", True), ("ds_configs/zero3.json", False)):
        before = replace(cell.config, deepspeed=path)
        configuration.save(before, cell.folder / "config.yaml")
        found = {**running.contents(cell.config), path: running.digest(Path(path))}
        del found["zero2"]
        (cell.folder / running.FINISHED).write_text(json.dumps({"contents": found}))
        if is_known:
            assert running.finished(cell)
        else:
            with pytest.raises(
                ValueError,
                match=r"other settings or data \(deepspeed: zero3 -> zero2; the content of zero2; ",
            ):
                running.finished(cell)


def test_a_cell_is_known_again_by_what_its_run_saves(valid, parse, tmp_path):
    """The run resolves what settings leave open, and saves that."""
    for cell in parse(valid)[1]:
        configuration.save(cell.config, tmp_path / "asked.yaml")
        configuration.save(
            configuration.parse("", ["--config", str(tmp_path / "asked.yaml")]), tmp_path / "saved.yaml"
        )
        assert changed(cell.config, yaml.safe_load((tmp_path / "saved.yaml").read_text())) == []
