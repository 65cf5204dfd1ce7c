"""Real samples are rearranged, and what a line says of itself is so."""

import json
import random
from collections import Counter

import pytest

from benchmarks.harder_pools import answer_of, exchanged, pools, short_answer


def line(source, number, question, answer, **more):
    said = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"id": f"{source}-{number}", "source": source, "messages": said, **more}


@pytest.fixture
def data(tmp_path):
    sums = [line("sums", i, f"{i} and 3?", f"{i} + 3 = {i + 3}\n#### {i + 3}") for i in range(80)]
    tales = [line("tales", i, f"Tale {i}?", f"Once upon a time {i} frogs lived here.") for i in range(90)]
    pool = [{**row, "corruption": "none"} for row in [*sums[:60], *tales]]
    pool += [{**row, "corruption": "truncated"} for row in sums[60:63]]
    folder = tmp_path / "targets" / "sums"
    folder.mkdir(parents=True)
    for path, rows in (
        (tmp_path / "noisy_pool.jsonl", pool),
        (folder / "dev.jsonl", sums[63:70]),
        (folder / "test.jsonl", sums[70:]),
    ):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def question_of(row):
    return row["messages"][0]["content"]


def test_each_sample_gets_an_answer_of_another_that_is_not_its_own():
    for answers in ("abcdefgh", "aabbccdd", "aaaabcde", "abbbabac"):
        rows = [line("a", i, f"{i}?", answer) for i, answer in enumerate(answers)]
        found = exchanged(rows, random.Random(0))
        assert Counter(map(answer_of, found)) == Counter(answers)
        before = {question_of(row): answer_of(row) for row in rows}
        assert before.keys() == {question_of(row) for row in found}
        assert all(answer_of(row) != before[question_of(row)] for row in found)
    with pytest.raises(ValueError, match="5 of 9 answers of a are equal"):
        exchanged([line("a", i, f"{i}?", answer) for i, answer in enumerate("aaaaabcde")], random.Random(0))


def test_right_is_what_was_right_and_words_are_the_same(data):
    lines = (data / "noisy_pool.jsonl").read_text().splitlines()
    truth = {question_of(row): answer_of(row) for row in map(json.loads, lines)}
    for setting, prompts, num_right in (("decoys", 60, 60), ("half_wrong", 60, 30)):
        pool = pools(data)[f"{setting}/sums"]["pool"]
        assert len({row["id"] for row in pool}) == len(pool)
        of_kind = [row for row in pool if row["source"] == "sums"]
        right = [row for row in of_kind if row["damage"] == "none"]
        useless = [row for row in of_kind if row["damage"] != "none"]
        assert len(right) == num_right == len(useless) and len({*map(question_of, of_kind)}) == prompts
        assert all(answer_of(row) == truth[question_of(row)] for row in right)
        assert all(answer_of(row) != truth[question_of(row)] for row in useless)
        assert Counter(map(answer_of, useless)) == Counter(truth[question_of(row)] for row in useless)
        assert len(pool) - len(of_kind) == len(of_kind) // 5


def test_a_behaviour_is_in_half_of_what_can_have_it_and_in_all_of_the_target(data):
    parts = pools(data)["behaviour"]
    short = [row for row in parts["pool"] if row["source"] == "short_answer"]
    long = [row for row in parts["pool"] if row["source"] == "sums"]
    assert len(short) + len(long) == 60 and 15 < len(short) < 45
    for row in short + parts["target"] + parts["test"]:
        assert row["source"] == "short_answer" and answer_of(row) == str(int(question_of(row).split()[0]) + 3)
    assert all("####" in answer_of(row) for row in long)
    assert sum(row["source"] == "tales" for row in parts["pool"]) == 90


def test_the_same_data_make_the_same_pools(data):
    assert pools(data) == pools(data) and pools(data, seed=1) != pools(data)


def test_a_short_answer_is_the_last_one_or_nothing():
    assert short_answer("2 + 3 = 5\n#### 5") == "5" and short_answer("So it is A.\n\nAnswer: D") == "D"
    assert short_answer("(B)") == "(B)" and short_answer("it depends on the day") is None
    assert short_answer("Answer: D\nand more words follow") is None
