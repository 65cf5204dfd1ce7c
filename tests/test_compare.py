"""A whole grid of real, tiny cells: its results, its end, and what happens when it is run again."""

import html
import json
import re
import time

import pytest
import yaml
from scipy import stats

from pipeline.compare import main
from pipeline.comparison import running
from tests.compare_cases import Forked

pytestmark = pytest.mark.distributed  # cells are processes
CELLS = [f"sums/{variant}/seed_{seed}" for seed in (0, 1) for variant in ("filter_then_weight", "random")]


class Killed(Forked):
    """Killed as soon as it has written its configuration."""

    def __init__(self, command, log, environment):
        super().__init__(command, log, environment)
        while not (log.with_suffix("") / "config.yaml").is_file() and self.process.is_alive():
            time.sleep(0.01)
        self.process.kill()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("grid")


@pytest.fixture(scope="module")
def grid(folder, model_folder, data_folder):
    """2 variants x 2 seeds of 4 steps."""
    settings = {
        "variants": ["filter_then_weight", "random"],
        "seeds": [0, 1],
        "folder": str(folder / "runs"),
        "parallel": 2,
        "targets": {
            "sums": {"target": [f"{data_folder}/target.jsonl"], "test": [f"{data_folder}/test.jsonl"]}
        },
        "base": {
            "model": {"name": model_folder, "lora_rank": 2},
            "data": {
                "pool": [f"{data_folder}/pool.jsonl"],
                "max_tokens": 60,
                "cache_folder": f"{data_folder}/tokens",
            },
            "selection": {
                "proposal": "uniform",  # every step scores what it looks at, in a pool of 48
                "score_every": 1,
                "candidates_per_step": 8,
                "keep_per_step": 4,
                "target_per_step": 3,
                "warmup_steps": 2,
            },
            "training": {"steps": 4, "learning_rate": 1e-2, "evaluate_every": 2, "evaluation_answers": 3},
        },
    }
    (folder / "grid.yaml").write_text(yaml.safe_dump(settings))
    return folder / "grid.yaml"


@pytest.fixture
def compare(grid, monkeypatch, capsys):
    """Function of more arguments and of cells to kill: exit code, last line as JSON or None, stderr, cells
    that ran."""

    def compare(*arguments, kill=""):
        ran = []

        def spawn(command, log, environment):
            cell = str(log.with_suffix("").relative_to(grid.parent / "runs"))
            ran.append(cell)
            return (Killed if cell == kill else Forked)(command, log, environment)

        monkeypatch.setattr(running, "spawn", spawn)
        running.digest.cache_clear()
        code = main(["--config", str(grid), *arguments])
        printed = capsys.readouterr()
        lines = printed.out.splitlines()
        return code, json.loads(lines[-1]) if lines else None, printed.err, ran

    return compare


def test_a_killed_cell_is_reported_the_rest_goes_on_and_it_alone_runs_again(compare, grid):
    code, last, error, ran = compare(kill="sums/random/seed_0")
    assert code == 1 and sorted(ran) == sorted(CELLS)
    assert (
        "sums, random, seed 0 ended with code -9; the end of" in error
        and "failed: sums, random, seed 0" in error
    )
    assert "data.pool: samples 48" in error, "the tail of the log is missing"
    assert last["random"]["se"] is None and last["filter_then_weight"]["se"] is not None

    code, last, _, ran = compare()
    assert code == 0 and ran == ["sums/random/seed_0"]
    result = json.loads((grid.parent / "runs/comparison.json").read_text())
    losses = {}
    for cell in CELLS:
        lines = (grid.parent / "runs" / cell / "evaluations.jsonl").read_text().splitlines()
        losses[cell] = [(line["step"], line["loss"]) for line in map(json.loads, lines)]
        assert [step for step, _ in losses[cell]] == [0, 2, 4]
    for variant, found in last.items():
        of_seeds = [[loss for _, loss in losses[f"sums/{variant}/seed_{seed}"]] for seed in (0, 1)]
        aucs = [(before + 2 * middle + after) / 4 for before, middle, after in of_seeds]
        assert found["auc"] == pytest.approx(sum(aucs) / 2) and found["se"] == pytest.approx(stats.sem(aucs))
        assert found["final"] == pytest.approx(sum(x[-1] for x in of_seeds) / 2)
        assert result["variants"][variant]["auc"]["mean"] == found["auc"]
    assert all(0 <= cell["accuracy"] <= 1 and cell["cells_beside"] == 1 for cell in result["cells"])
    assert {cell["trained_samples"] for cell in result["cells"] if cell["variant"] == "random"} == {16}


def test_a_grid_that_is_finished_only_reports(compare, grid):
    code, last, _, ran = compare()
    page = (grid.parent / "runs/comparison.html").read_text()
    assert code == 0 and ran == [] and last.keys() == {"filter_then_weight", "random"}
    assert len(list((grid.parent / "runs/figures").glob("*.png"))) == 3 and page.count("<svg") > 10
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page), "the page loads something from outside"
    for words in (
        "sums: held-out loss",
        "sums: damage of what was kept",
        "Match with the target, mean of all cells",
        "Most kept, filter_then_weight",
        "Least kept, filter_then_weight",
        "Duplicates",
        "Memory of a step",
        "Warnings and fallbacks",
    ):
        assert words in page, words
    verdict = json.loads((grid.parent / "runs/comparison.json").read_text())["verdict"]
    assert (
        "The held-out loss of filter_then_weight, averaged over training, is" in verdict
        and html.escape(verdict, False) in page
    )


def test_runs_with_a_budget_come_after_those_whose_clock_they_follow(compare, grid):
    """Twice random's time are twice its steps, and once its time is the run that is there already."""
    arguments = ("--variants", "[random]", "--budgets", "[1, 2]")
    code, _, _, ran = compare(*arguments)
    assert code == 0 and sorted(ran) == [f"sums/random/budget_2/seed_{seed}" for seed in (0, 1)]
    result = json.loads((grid.parent / "runs/comparison.json").read_text())
    assert result["clock"] == "cpu"
    rows = {row["budget"]: (row["cells"], row["of"], row["steps"]) for row in result["budgets"]}
    assert rows == {1: (2, 2, 4), 2: (2, 2, 8)}
    assert result["budgets"][0]["cost"]["mean"] == 1
    assert compare(*arguments)[3] == []


def test_changed_settings_and_data_are_not_reused_silently(compare, grid, monkeypatch):
    code, last, error, ran = compare("--selection.ridge", "0.5")
    assert (code, last, ran) == (2, None, [])
    assert "selection.ridge: 1.0 -> 0.5" in error and "name another folder, or set overwrite" in error
    digests = {}
    monkeypatch.setattr(running, "contents", lambda config: digests)
    assert "the content of" in compare()[2]


def test_overwrite_runs_changed_cells_again_and_a_cell_that_fails_does_not_stop_the_grid(compare):
    """At a learning rate of 1e30 the first update spoils the loss of the second, and of its target."""
    code, last, error, ran = compare(
        "--overwrite", "true", "--seeds", "[1]", "--training.learning_rate", "1e30"
    )
    assert code == 1 and len(ran) == 2 and all(set(found.values()) == {None} for found in last.values())
    assert (
        "Lower training.learning_rate" in error
        and "the target's gradient is not finite" in error
        and "runs again: " in error
    )
