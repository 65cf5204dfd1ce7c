import random
from collections import Counter

import pytest

from pipeline.data.demo import KINDS, TARGET_KIND, generate, main, shelf
from pipeline.data.sources import read

PARTS = ("pool", "target", "test")


@pytest.fixture(scope="module")
def parts():
    return generate(1200, seed=0)


def test_the_same_seed_writes_the_same_bytes(tmp_path):
    for folder, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        main(["--folder", str(tmp_path / folder), "--samples", "200", "--seed", seed])
    for part in PARTS:
        a, b, c = ((tmp_path / folder / f"{part}.jsonl").read_bytes() for folder in "abc")
        assert a == b != c


def test_files_are_read_back_whole(tmp_path, capsys):
    main(["--folder", str(tmp_path)])
    records, counts = read([str(tmp_path / "pool.jsonl")], "error")
    assert (
        counts == {"samples": 1200} and f"{tmp_path / 'pool.jsonl'}: 1200 samples" in capsys.readouterr().out
    )
    assert {record.source for record in records} == {kind.__name__ for kind in KINDS} and len(KINDS) >= 8
    assert len({record.id for record in records}) == 1200


@pytest.mark.parametrize("num_samples", [100, 1200])
def test_thirty_percent_of_the_pool_are_damaged_and_a_quarter_is_of_the_target_kind(num_samples):
    pool = generate(num_samples, seed=0)["pool"]
    damage = Counter(line["damage"] for line in pool)
    assert damage.pop("none") == pytest.approx(0.7 * num_samples, abs=0.01 * num_samples)
    assert set(damage) == {"wrong_answer", "duplicate", "gibberish", "truncation"}
    assert sum(line["source"] == TARGET_KIND for line in pool) == pytest.approx(
        0.25 * num_samples, abs=0.05 * num_samples
    )


def test_no_prompt_is_shared_between_pool_target_and_test(parts):
    prompts = {part: [line["prompt"] for line in parts[part]] for part in PARTS}
    held_out = prompts["target"] + prompts["test"]
    assert len(set(held_out)) == len(held_out) == 16 + 64
    assert not set(held_out) & set(prompts["pool"])
    assert all(
        line["damage"] == "none" and line["source"] == TARGET_KIND for line in parts["target"] + parts["test"]
    )


def test_damage_is_what_it_is_called(parts):
    rng, truth = random.Random(0), {}
    for _ in range(20_000):  # draws every one of the 600 prompts of the target kind
        prompt, right, wrong = shelf(rng)
        truth[prompt] = {"none": f" {right}", "duplicate": f" {right}", "wrong_answer": f" {wrong}"}
    for line in parts["pool"] + parts["target"] + parts["test"]:
        if line["source"] == TARGET_KIND and line["damage"] in truth[line["prompt"]]:
            assert line["completion"] == truth[line["prompt"]][line["damage"]]
        elif line["source"] == TARGET_KIND and line["damage"] == "truncation":
            assert truth[line["prompt"]]["none"].startswith(line["completion"]) and line["completion"].strip()
    original = {line["prompt"]: line["completion"] for line in parts["pool"] if line["damage"] == "none"}
    duplicates = [line for line in parts["pool"] if line["damage"] == "duplicate"]
    assert all(original[line["prompt"]] == line["completion"] for line in duplicates)
    others = [line["prompt"] for line in parts["pool"] if line["damage"] != "duplicate"]
    assert len(set(others)) == len(others)  # nothing but the labelled duplicates occurs twice


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_answers_are_wrong_and_half_an_answer_is_not_the_answer(kind):
    rng = random.Random(0)
    for _ in range(200):
        _, right, wrong = kind(rng)
        assert right != wrong and len(right) >= 2


def test_a_pool_that_cannot_be_made_is_refused(capsys):
    for samples in ("99", "1201"):
        with pytest.raises(SystemExit):
            main(["--folder", "unused", "--samples", samples])
    assert "--samples is 1201" in capsys.readouterr().err
