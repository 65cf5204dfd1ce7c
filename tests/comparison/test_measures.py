"""The numbers of a cell, from records with known contents."""

import json
from dataclasses import replace

import pandas as pd
import pytest

from pipeline.comparison.grid import Cell
from pipeline.comparison.measures import measure, same_candidates
from pipeline.config import Config, DataConfig, RunConfig
from pipeline.data.texts import read_texts
from pipeline.reporting.records import read_run
from tests.reporting.conftest import write_run

NO_TEXTS = pd.DataFrame(columns=["length", "is_duplicate"])


@pytest.fixture
def run(tmp_path):
    """Two warm-up steps of 1.05 s and four of 2 s."""
    return read_run(write_run(tmp_path / "run", num_steps=6, evaluations=[(0, 4.0), (2, 2.0), (6, 1.0)]))


@pytest.fixture
def cell(run):
    (run.folder / "cell.json").write_text(json.dumps({"contents": {}, "parallel": 3, "wall_seconds": 1.0}))
    return Cell("sums", "ours", 4, Config(run=RunConfig(folder=str(run.folder))))


def test_auc_is_the_area_under_the_held_out_loss_and_time_leaves_evaluations_out(cell, run):
    """(4 + 2) / 2 over 2 steps, (2 + 1) / 2 over 4 steps."""
    found = measure(cell, run, NO_TEXTS)
    assert found["auc"] == pytest.approx((3 * 2 + 1.5 * 4) / 6) and (found["before"], found["final"]) == (
        4.0,
        1.0,
    )
    assert found["curve"]["seconds"] == pytest.approx([0, 2.1, 10.1])
    assert found["curve"]["cpu_seconds"] is None, "the fixture is of a version without them"
    assert (found["target"], found["variant"], found["seed"], found["cells_beside"]) == ("sums", "ours", 4, 2)
    assert found["trained_samples"] == 48 and found["trained_tokens"] == 4800 and found["accuracy"] is None
    assert found["selection_share"] == pytest.approx((4 * 1.0 + 2 * 0.05) / 10.1)
    json.dumps(found, allow_nan=False)


def test_accuracy_is_that_of_the_last_evaluation(cell, run):
    with open(run.folder / "evaluations.jsonl", "a") as file:
        file.write(
            json.dumps({"step": 6, "name": "test", "loss": 0.5, "accuracy": 0.25, "num_answers": 8}) + "\n"
        )
    found = measure(cell, read_run(run.folder), NO_TEXTS)
    assert found["accuracy"] == 0.25 and found["final"] == 0.5


def test_duplicates_are_found_by_their_text_and_counted_among_the_kept(cell, run, tmp_path):
    """Three samples of the last step are in this pool; two have the same text under different names."""
    last = run.kept.loc[run.kept["step"] == 5, "id"].tolist()
    rows = [
        {"id": last[0], "prompt": "1+1", "completion": "2"},
        {"id": last[1], "prompt": "1+1", "completion": "2"},
        {
            "id": last[2],
            "messages": [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "two"}],
        },
        {"id": "never kept", "prompt": "1+1", "completion": "3"},
        {"id": "twice", "text": "one"},
        {"id": "twice", "text": "other"},
    ]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = read_texts(DataConfig(pool=[str(tmp_path / "pool.jsonl")]))
    assert texts["is_duplicate"].to_dict() == {
        last[0]: True,
        last[1]: True,
        last[2]: False,
        "never kept": False,
    }
    found = measure(cell, run, texts)
    assert found["kept"]["duplicates"] == pytest.approx(2 / 3) and found["kept"]["length"] == pytest.approx(
        (4 + 4 + 6) / 3
    )
    assert found["pool"]["duplicates"] == pytest.approx(2 / 4)


def test_a_run_that_kept_what_full_did_not_see_is_refused(tmp_path):
    runs = []
    for method, ids in (("full", "abcd"), ("random", "bd"), ("top_k", "bx")):
        folder = write_run(tmp_path / method, method, num_steps=3)
        (folder / "config.yaml").write_text(
            json.dumps(
                {"selection": {"method": method, "candidates_per_step": 4, "score_every": 1}, "run": {}}
            )
        )
        kept = [{"step": step, "id": f"{step}-{name}", "weight": 1.0} for step in range(3) for name in ids]
        (folder / "kept.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
        runs.append(read_run(folder))
    same_candidates(runs[:2])
    with pytest.raises(ValueError, match=r"top_k: step 0 trained on 0-x, which .*full did not look at"):
        same_candidates(runs)
    for section, name, value in (
        ("selection", "score_every", 2),
        ("selection", "proposal", "bm25"),
        ("data", "pool", ["other.jsonl"]),
        ("training", "target_mix", 0.25),
    ):
        config = {key: dict(own) for key, own in runs[2].config.items()}
        config.setdefault(section, {})[name] = value
        same_candidates([*runs[:2], replace(runs[2], config=config)])
