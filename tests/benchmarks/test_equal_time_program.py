"""The handle of equal time: a part of the recipe, and the numbers of its last line."""

import json
import sys

import pytest

from benchmarks import equal_time


def test_the_quick_grid_is_a_part_of_the_recipe_without_budgets():
    grid = equal_time.quick_grid()
    assert tuple(grid["variants"]) == equal_time.QUICK and grid["variants"]["learned"] == {
        "selection.prior": False
    }
    assert grid["budgets"] == [] and grid["seeds"] == [0, 1, 2]
    assert grid["folder"] != "runs/compare_equal_time", "its cells are no part of the recipe's"


def test_the_last_line_has_a_lower_bound_only_where_it_needs_one():
    numbers = {"auc": 1.0, "se": None, "final": 2.0, "step_price": 1.5}
    found = equal_time.headline(
        {
            "there": {**numbers, "time_to_random": 0.5, "time_to_random_above": None},
            "never": {**numbers, "time_to_random": None, "time_to_random_above": 1.25},
        }
    )
    assert found == {
        "there": {"time_to_random": 0.5, "step_price": 1.5, "final": 2.0},
        "never": {"time_to_random": None, "time_to_random_above": 1.25, "step_price": 1.5, "final": 2.0},
    }


def test_what_a_comparison_prints_is_passed_on_but_for_its_last_line(tmp_path, monkeypatch, capsys):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho a table\necho '{\"random\": 1}'\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    assert equal_time.compare(tmp_path / "grid.yaml") == {"random": 1}
    assert capsys.readouterr().out == "a table\n"
    program.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(SystemExit) as ended:
        equal_time.compare(tmp_path / "grid.yaml")
    assert ended.value.code == 1


def test_the_program_ends_with_its_line(monkeypatch, capsys, tmp_path):
    numbers = {"time_to_random": 1.0, "time_to_random_above": None, "step_price": 1.0, "final": 2.0}
    monkeypatch.setattr(equal_time, "ROOT", tmp_path)
    monkeypatch.setattr(equal_time, "compare", lambda config: {"random": numbers})
    assert equal_time.main(["--quick"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["random"]["time_to_random"] == 1.0
    assert (tmp_path / "runs/equal_time_quick.yaml").is_file()
