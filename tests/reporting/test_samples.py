"""Most and least kept, and repeated texts, against counts worked out by hand."""

import json

import pandas as pd
import pytest

from pipeline.data.texts import digest
from pipeline.reporting.records import Recorder, read_run
from pipeline.reporting.samples import least_kept, most_kept, repeats, sample_section, tally


@pytest.fixture
def by_hand(make_run):
    """One warm-up step and three others over the samples a to f; e is never kept, and aligned worst."""
    folder = make_run("run", num_steps=0, evaluations=[])
    with Recorder(folder) as recorder:
        for step, (kept, passed) in enumerate([("ef", "ab"), ("ab", "ef"), ("ac", "de"), ("ad", "ef")]):
            recorder.step({"step": step, "warmup": step == 0, "warnings": []})
            recorder.kept(
                [
                    {"step": step, "id": name, "source": name.upper(), "weight": weight, "alignment": 0.5}
                    for name, weight in zip(kept, (0.75, 0.25))
                ]
            )
            recorder.passed({"step": step, "ids": list(passed), "alignment": [-0.1, -0.3] if step else None})
    return read_run(folder)


def test_samples_are_counted_after_warm_up(by_hand):
    found = tally(by_hand)
    assert found["kept"].to_dict() == {"a": 3, "b": 1, "c": 1, "d": 1, "e": 0, "f": 0}
    assert found["seen"].to_dict() == {"a": 3, "b": 1, "c": 1, "d": 2, "e": 3, "f": 2}
    assert found.at["a", "weight"] == pytest.approx(1.5) and found.at["b", "weight"] == pytest.approx(0.5)
    assert found.at["e", "alignment"] == pytest.approx((-0.1 - 0.3 - 0.1) / 3) and found.at[
        "d", "alignment"
    ] == pytest.approx(0.2)


def test_samples_taken_as_proposed_count_as_trained_on_and_not_as_kept(by_hand):
    """Step 4 takes a and g without looking at them."""
    with Recorder(by_hand.folder) as recorder:
        recorder.step({"step": 4, "scored": 0})
        recorder.kept([{"step": 4, "id": name, "weight": 0.5} for name in "ag"])
    lines = [json.loads(line) for line in (by_hand.folder / "steps.jsonl").read_text().splitlines()]
    lines = [{"scored": 1, **line} for line in lines]
    (by_hand.folder / "steps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = tally(run := read_run(by_hand.folder))
    assert found["kept"].to_dict() == {"a": 3, "b": 1, "c": 1, "d": 1, "e": 0, "f": 0, "g": 0}
    assert found["seen"].to_dict() == {"a": 3, "b": 1, "c": 1, "d": 2, "e": 3, "f": 2, "g": 0}
    assert found["trained"].to_dict() == {"a": 4, "b": 1, "c": 1, "d": 1, "e": 0, "f": 0, "g": 1}
    assert found.at["a", "weight"] == pytest.approx(1.5), "of scored steps alone"
    assert most_kept(found).index.tolist() == ["a", "b", "c", "d", "g"]
    assert "g" not in least_kept(found).index
    section = sample_section([("run", run)], None)
    (most, least) = section.tables
    assert (most.title, least.title) == ("Most trained on, run", "Least kept, run")
    assert [row[:2] for row in most.rows if row[-1] in "ag"] == [["3 of 3", "4"], ["-", "1"]]
    assert "run: of 8 samples trained on 2 were taken as proposed" in section.notes[0]


def test_most_and_least_kept_come_in_order(by_hand):
    found = tally(by_hand)
    assert most_kept(found).index.tolist() == ["a", "b", "c", "d"]
    assert least_kept(found).index.tolist() == ["e", "f", "d", "a", "b", "c"]


def texts_of(**texts: str) -> pd.DataFrame:
    rows = {
        name: {
            "source": "s",
            "damage": "",
            "text": text,
            "length": len(text),
            "digest": digest([text]),
            "is_duplicate": False,
        }
        for name, text in texts.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def test_texts_that_differ_in_case_and_white_space_alone_are_repeats(by_hand):
    texts = texts_of(
        a="Add 1 and 2:", b="add  1 AND 2:\n", c="Add 1 and 3:", d="another", e="Another ", f="f"
    )
    found = repeats(by_hand, texts)  # a in three steps, once with b; d once, e in the warm-up
    assert found[["times", "together"]].to_numpy().tolist() == [[4, 2], [2, 1]]
    assert found["ids"].tolist() == [["a", "b"], ["d", "e"]]


def test_a_run_that_did_not_record_what_it_left_out_says_so(by_hand):
    (by_hand.folder / "passed.jsonl").unlink()
    run = read_run(by_hand.folder)
    section = sample_section([("run", run)], None, "no texts here")
    assert [table.title for table in section.tables] == ["Most kept, run"]
    assert section.notes[0] == "no texts here" and "least kept are not known" in section.notes[1]


def test_a_sample_that_the_pool_no_longer_has_is_shown_without_text(by_hand):
    section = sample_section([("run", by_hand)], texts_of(a="x" * 1000, e="e"))
    rows = {row[6]: row for table in section.tables for row in table.rows}
    assert rows["a"][1] == "x" * 240 + "\u2026" and rows["b"][1] == "-" and rows["e"][4] == "E"
    assert "not in the pool's files any more" in section.notes[-1]


def test_passed_candidates_are_read_as_rows_and_a_torn_line_is_named(make_run):
    folder = make_run("run", num_steps=3)
    assert read_run(folder).passed.groupby("step").size().tolist() == [24, 24, 24]
    with open(folder / "passed.jsonl", "a") as file:
        file.write(json.dumps({"step": 3, "ids": ["a"]})[:-3])
    with pytest.raises(ValueError, match=r"passed\.jsonl:4: "):
        read_run(folder)
