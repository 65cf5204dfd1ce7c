"""Target sets made from files in the layout of LESS's evaluation data."""

import json

import pytest

from pipeline.data import less
from pipeline.data.sources import read


@pytest.fixture
def evaluation_files(tmp_path):
    for part in ("dev", "test"):
        folder = tmp_path / "eval" / "mmlu" / part
        folder.mkdir(parents=True)
        for subject in ("old_maps", "birds"):
            rows = [f'"Which, of {number}?",one,two,three,four,{"ABCD"[number % 4]}\n' for number in range(7)]
            (folder / f"{subject}_{part}.csv").write_text("".join(rows))
    tydiqa = tmp_path / "eval" / "tydiqa"
    tydiqa.mkdir()
    item = {"context": "Mitä on.", "question": "Mitä?", "answers": [{"text": "on"}, {"text": "Mitä"}]}
    (tydiqa / "tydiqa-one-shot.json").write_text(json.dumps({"finnish": [item], "english": [item]}))
    paragraphs = [
        {
            "context": "c",
            "qas": [
                {"id": f"{language}-{i}-0", "question": "q", "answers": [{"text": "a"}]} for i in range(8)
            ],
        }
        for language in ("finnish", "english")
    ]
    (tydiqa / "tydiqa-goldp-v1.1-dev.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    return tmp_path


def test_targets_are_those_of_less_and_only_the_answer_is_the_completion(evaluation_files, tmp_path):
    less.main(["--data", str(evaluation_files), "--folder", str(tmp_path / "out")])
    records = {
        part: read([str(tmp_path / "out" / f"{part}.jsonl")], "error")[0]
        for part in ("mmlu_target", "mmlu_test", "tydiqa_target", "tydiqa_test")
    }
    assert {part: len(found) for part, found in records.items()} == {
        "mmlu_target": 10,
        "mmlu_test": 10,
        "tydiqa_target": 2,
        "tydiqa_test": 10,
    }
    question = records["mmlu_target"][1]
    assert question.id == "birds-dev-1" and question.completion == " B"
    assert (
        "Which, of 1?\nA. one\nB. two\nC. three\nD. four\nAnswer:\n<|assistant|>\nThe answer is:"
        in question.prompt
    )
    passage = records["tydiqa_target"][0]
    assert passage.completion == " on" and passage.prompt.endswith("Question: Mitä?\n<|assistant|>\nAnswer:")
    assert not {record.id for part in ("mmlu_test", "tydiqa_test") for record in records[part]} & {
        question.id,
        passage.id,
    }


def test_missing_files_are_named(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        less.main(["--data", str(tmp_path), "--folder", str(tmp_path / "out")])
    assert ended.value.code == 2 and "*_dev.csv" in capsys.readouterr().err
