"""What is written is what is read, and a broken record is named by file and line."""

import json

import pytest

from pipeline.reporting.records import Recorder, labels, read_run


def test_every_record_is_on_disk_when_the_call_returns(tmp_path):
    recorder = Recorder(tmp_path)
    recorder.step({"step": 0, "train_loss": 1.5})
    recorder.kept([{"step": 0, "id": "a", "weight": 0.25}, {"step": 0, "id": "ä", "weight": 0.75}])
    recorder.evaluation({"step": 0, "name": "test", "loss": 2.0})
    assert json.loads((tmp_path / "steps.jsonl").read_text()) == {"step": 0, "train_loss": 1.5}
    assert [
        json.loads(line)["id"] for line in (tmp_path / "kept.jsonl").read_text(encoding="utf-8").splitlines()
    ] == ["a", "ä"]
    assert json.loads((tmp_path / "evaluations.jsonl").read_text())["loss"] == 2.0
    recorder.close()


def test_half_of_a_surrogate_pair_is_written_and_read_as_an_escape(make_run):
    folder = make_run("run", num_steps=1)
    with Recorder(folder) as recorder:
        recorder.kept([{"step": 0, "id": "half \ud800", "source": "\U0001f600", "weight": 1.0}])
    assert json.loads((folder / "kept.jsonl").read_text().splitlines()[-1])["id"] == "half \ud800"
    assert read_run(folder).kept.iloc[-1][["id", "source"]].tolist() == ["half \\ud800", "\U0001f600"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_number_is_an_error_that_names_the_field_and_writes_nothing(tmp_path, value):
    with (
        Recorder(tmp_path) as recorder,
        pytest.raises(ValueError, match=r"step 3: seconds\.gram is -?(nan|inf)"),
    ):
        recorder.step({"step": 3, "train_loss": 1.0, "seconds": {"gram": value}})
    assert (tmp_path / "steps.jsonl").read_text() == ""


def test_run_is_read_back_with_warmup_and_seconds(make_run):
    run = read_run(make_run("run", num_steps=10))
    assert len(run.steps) == 10 and len(run.kept) == 80
    assert run.steps["warmup"].tolist() == [True] * 2 + [False] * 8
    assert run.kept.groupby("step")["warmup"].all().tolist() == [True] * 2 + [False] * 8
    assert run.steps["seconds_total"].iloc[-1] == 2.0
    assert run.steps["target_loss"].isna().tolist() == [True] * 2 + [False] * 8


def test_absent_fields_are_missing_values_not_errors(make_run):
    folder = make_run("run")
    (folder / "steps.jsonl").write_text(
        '{"step": 0, "seconds": {"update": 2.0, "solve": 0.5}}\n{"step": 1}\n'
    )
    (folder / "kept.jsonl").write_text('{"step": 0, "id": "a", "weight": 1.0}\n')
    run = read_run(folder)
    assert run.steps["seconds_total"].iloc[0] == 2.5 and run.steps["seconds_total"].isna().iloc[1]
    assert run.steps["seconds_gram"].iloc[0] == 0.0 and run.steps["seconds_gram"].isna().iloc[1]
    assert run.steps["cosine"].isna().all() and not run.steps["warmup"].any()
    assert run.kept["damage"].tolist() == [""] and run.kept["source"].tolist() == [""]


def test_samples_that_no_step_has_looked_at_are_told_apart(make_run):
    rarely = read_run(make_run("rarely", num_steps=10, score_every=4))
    assert rarely.steps["scored"].tolist() == [1, 1, 0, 0, 1, 0, 0, 0, 1, 0]
    assert rarely.kept.groupby("step")["looked_at"].mean().tolist() == rarely.steps["scored"].tolist()
    assert (rarely.setup["what"], rarely.setup["seconds"]) == ("features of 1,000 samples", 3.0)
    before, random = read_run(make_run("before")), read_run(make_run("random", method="random"))
    assert before.steps["scored"].isna().all() and before.kept["looked_at"].all(), "of an earlier version"
    assert not random.kept["looked_at"].any() and random.setup == {"seconds": 0.0, "cpu_seconds": 0.0}


def test_a_price_that_is_no_number_is_named(make_run):
    folder = make_run("run", score_every=4)
    (folder / "setup.json").write_text('{"what": "features", "seconds": null, "cpu_seconds": 1.0}')
    with pytest.raises(ValueError, match=r"setup\.json: seconds is None, expected a number of seconds"):
        read_run(folder)


@pytest.mark.parametrize(
    "line", ['{"step": 1, "train', '{"step": 1, "train_loss": NaN}', '{"train_loss": 1.0}', "[1]"]
)
def test_broken_line_is_named_by_file_and_line(make_run, line):
    folder = make_run("run")
    (folder / "steps.jsonl").write_text('{"step": 0}\n\n' + line + "\n")
    with pytest.raises(ValueError, match=r"steps\.jsonl:3: "):
        read_run(folder)


@pytest.mark.parametrize(
    "name", ["config.yaml", "environment.json", "pool.json", "steps.jsonl", "kept.jsonl", "evaluations.jsonl"]
)
def test_missing_file_is_named(make_run, name):
    folder = make_run("run")
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"{name}: the file is missing"):
        read_run(folder)


def test_folder_that_does_not_exist_and_run_without_steps_are_told_apart(tmp_path, make_run):
    with pytest.raises(ValueError, match="no such folder"):
        read_run(tmp_path / "nothing")
    folder = make_run("run", num_steps=0, evaluations=[])
    with pytest.raises(ValueError, match="no step is recorded"):
        read_run(folder)


def test_labels_are_methods_and_tell_runs_of_one_method_apart(make_run):
    runs = [
        read_run(make_run(name, method=method))
        for name, method in (("x/0", "random"), ("x/1", "random"), ("y/1", "random"), ("z", "full"))
    ]
    names = labels(runs)
    assert names[0] == "random (0)" and names[3] == "full"
    assert len(set(names)) == 4 and all("random" in name for name in names[:3])
