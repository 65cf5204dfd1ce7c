"""Settings in which words do not tell: lines are what they say of themselves, and words do not tell it."""

import math
import re
from collections import Counter

import numpy as np
import pytest

from pipeline.data import demo_settings
from pipeline.data.demo import PARTS, SIZES, TARGET_KIND
from pipeline.data.sources import read

SETTINGS = tuple(demo_settings.SETTINGS)


@pytest.fixture(scope="module")
def made():
    return {name: demo_settings.generate(name, seed=0) for name in SETTINGS}


def words_of(line):
    return re.findall(r"\w+", (line["prompt"] + line["completion"]).lower())


def is_right(line, parts):
    return line["source"] == parts["target"][0]["source"] and line["damage"] == "none"


def bm25(pool, target):
    """Okapi BM25 of every pool line for every target line, as its formula reads, (N, M)."""
    k1, b = 1.5, 0.75
    counts = [Counter(words_of(line)) for line in pool]
    frequency = Counter(word for count in counts for word in count)
    idf = {word: math.log(1 + (len(pool) - found + 0.5) / (found + 0.5)) for word, found in frequency.items()}
    mean_length = sum(count.total() for count in counts) / len(pool)
    queries = [words_of(line) for line in target]
    scores = np.zeros((len(pool), len(target)))
    for i, count in enumerate(counts):
        length = k1 * (1 - b + b * count.total() / mean_length)
        weight = {word: idf[word] * n * (k1 + 1) / (n + length) for word, n in count.items()}
        scores[i] = [sum(weight.get(word, 0) for word in query) for query in queries]
    return scores


def cosine(pool, target):
    """Cosine of TF-IDF vectors of words, (N, M)."""
    lines = [Counter(words_of(line)) for line in [*pool, *target]]
    place = {word: i for i, word in enumerate(dict.fromkeys(word for line in lines for word in line))}
    table = np.zeros((len(lines), len(place)))
    for i, line in enumerate(lines):
        for word, count in line.items():
            table[i, place[word]] = count
    table *= np.log((1 + len(pool)) / (1 + (table[: len(pool)] > 0).sum(0))) + 1
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    return table[: len(pool)] @ table[len(pool) :].T


RETRIEVALS = {"bm25": bm25, "tfidf": cosine}
POOLED = {"mean": np.mean, "max": np.max}


def top_quarter(scores):
    """A quarter of the pool, to which every target example adds its next best in turn."""
    order, taken = np.argsort(-scores, axis=0, kind="stable"), dict[int, None]()
    for position in order.reshape(-1):
        taken[int(position)] = None
        if len(taken) == len(scores) // 4:
            return list(taken)
    raise AssertionError("unreachable: every sample is in every column")


def area_under_curve(scores, yes):
    """The probability that one of ``yes`` has a higher score than one of the rest; ties count half."""
    above = scores[yes][:, None] - scores[~yes][None]
    return float(((above > 1e-9) + 0.5 * (np.abs(above) <= 1e-9)).mean())


def test_the_tests_own_measures_are_right():
    scores, yes = np.array([3.0, 2.0, 2.0, 1.0]), np.array([True, True, False, False])
    assert area_under_curve(scores, yes) == 3.5 / 4 and area_under_curve(-scores, yes) == 0.5 / 4
    assert top_quarter(np.array([[1.0, 0.0]] * 6 + [[5.0, 0.0], [0.0, 7.0]])) == [6, 7]
    pool = [{"prompt": text, "completion": ""} for text in ("red fox", "red cat", "blue owl")]
    for retrieval in RETRIEVALS.values():
        first, second, third = retrieval(pool, [pool[0]])[:, 0]
        assert first > second > third == 0


@pytest.mark.parametrize("name", SETTINGS)
def test_sizes_are_the_same_and_nothing_held_out_is_in_the_pool(made, name):
    assert demo_settings.generate(name, seed=0) == made[name] != demo_settings.generate(name, seed=1)
    assert {part: len(lines) for part, lines in made[name].items()} == {
        "pool": 1200,
        "target": 24,
        "test": 64,
    }
    lines = [line for part in PARTS for line in made[name][part]]
    assert len({line["id"] for line in lines}) == len(lines)
    held_out = [line["prompt"] for line in made[name]["target"] + made[name]["test"]]
    assert len(set(held_out)) == len(held_out)
    assert not set(held_out) & {line["prompt"] for line in made[name]["pool"]}
    assert all(is_right(line, made[name]) for line in made[name]["target"] + made[name]["test"])
    assert any(is_right(line, made[name]) for line in made[name]["pool"])


@pytest.mark.parametrize("name", SETTINGS)
def test_names_are_read_without_files(made, name):
    for part in PARTS:
        records, _ = read([f"demo:{name}/{part}"], "error")
        assert [(r.id, r.source, r.damage, r.prompt, r.completion) for r in records] == [
            tuple(line[key] for key in ("id", "source", "damage", "prompt", "completion"))
            for line in made[name][part]
        ]


@pytest.mark.parametrize("name", ["demo:decoy/pool", "demo:decoys", "demo:/pool", "demo:decoys/pools"])
def test_a_setting_that_is_not_there_is_refused(name):
    with pytest.raises(ValueError, match=f"there is no {name}; the demo data are demo:pool, .*demo:decoys/"):
        read([name], "error")


def test_answers_of_route_are_what_their_damage_says(made):
    orders, counts = {}, Counter()
    for name in ("decoys", "half_wrong", "other_words"):
        for line in [line for part in PARTS for line in made[name][part] if line["source"] == "route"]:
            (size,) = set(words_of(line)) & set(SIZES)
            answer = tuple(line["completion"].split())
            counts[name, line["damage"]] += 1
            if line["damage"] == "none":
                assert orders.setdefault(size, answer) == answer, "one size, one order, under all words"
        right = set(orders.values())
        for line in [line for line in made[name]["pool"] if line["source"] == "route"]:
            (size,) = set(words_of(line)) & set(SIZES)
            answer = tuple(line["completion"].split())
            assert sorted(answer) == ["lamp", "moon", "river", "stone"]
            if line["damage"] == "wrong_answer":
                assert answer == orders[size][::-1] and answer not in right
            elif line["damage"] == "other_answer":
                assert answer in right and answer != orders[size]
            elif line["damage"] == "no_answer":
                assert answer not in right
    assert len(orders) == len(set(orders.values())) == len(SIZES)
    assert counts == {
        ("decoys", "none"): 588,
        ("decoys", "other_answer"): 250,
        ("decoys", "no_answer"): 250,
        ("half_wrong", "none"): 588,
        ("half_wrong", "wrong_answer"): 500,
        ("other_words", "none"): 388,
    }


def test_a_decoy_has_exactly_the_words_of_a_right_sample(made):
    kind = [line for line in made["decoys"]["pool"] if line["source"] == "route"]
    right, useless = (
        Counter(tuple(sorted(words_of(line))) for line in kind if (line["damage"] == "none") == wanted)
        for wanted in (True, False)
    )
    assert right == useless and right.total() == 500


def test_other_words_shares_no_prompt_template_with_the_target(made):
    parts = made["other_words"]
    of_target = set.intersection(*(set(words_of(line)) for line in parts["target"]))
    answer = {"lamp", "moon", "river", "stone"}
    assert of_target == answer | {"route", "of", "the"}
    for line in parts["pool"]:
        if is_right(line, parts):
            assert not set(words_of(line)) & (of_target - answer)
        elif line["source"] == "owner":
            assert set(words_of(line)) >= of_target - answer and "has" in words_of(line)


RULES = {
    r"Add (\d+) and (\d+):": lambda a, b: str(int(a) + int(b)),
    r"Larger of (\d+) and (\d+):": lambda a, b: str(max(int(a), int(b))),
    r"Sort (.+):": lambda numbers: ", ".join(sorted(numbers.split(", "))),
    r"Reverse (.+):": lambda words: ", ".join(words.split(", ")[::-1]),
    r"Capitalise (.+):": lambda words: words.title(),
    r"Initials of (.+) (.+):": lambda first, last: f"{first[0]}. {last[0]}.",
}


def test_the_letter_names_the_right_option_and_every_kind_is_answered_both_ways(made):
    parts, checked = made["behaviour"], Counter()
    for line in [line for part in PARTS for line in parts[part]]:
        question, first, second = re.fullmatch(r"(.+:) \(A\) (.+) \(B\) (.+)", line["prompt"]).groups()
        answer, by_letter = line["completion"].removeprefix(" "), line["source"] == "letters"
        assert (answer in ("A", "B")) == by_letter and line["damage"] == "none" and first != second
        said = {"A": first, "B": second}.get(answer, answer)
        for pattern, rule in RULES.items():
            if found := re.fullmatch(pattern, question):
                assert said == rule(*found.groups())
                checked[pattern, by_letter] += 1
        assert said in (first, second)
    assert len(checked) == 2 * len(RULES) and min(checked.values()) > 20
    letters = Counter(line["completion"] for line in parts["pool"] if line["source"] == "letters")
    assert letters.total() == pytest.approx(300, abs=10) and min(letters.values()) > 100


def test_copies_have_the_words_of_their_original_and_right_ones_its_answer(made):
    parts = made["near_duplicates"]
    copies = [line for line in parts["pool"] if line["source"] == TARGET_KIND and line["damage"] != "none"]
    groups = Counter((tuple(words_of(line)), line["damage"]) for line in copies)
    assert set(groups.values()) == {25} and len(groups) == 24
    assert Counter(damage for _, damage in groups) == {"near_duplicate": 12, "wrong_answer": 12}
    assert len({line["prompt"] for line in copies}) == 600
    targets = [set(words_of(line)[3:6]) for line in parts["target"]]
    assert all(max(len(set(words[3:6]) & target) for target in targets) >= 2 for words, _ in groups)
    # Row, sign and number follow from size, colour and animal, each by itself.
    code = {}
    for line in [line for part in PARTS for line in parts[part] if line["source"] == TARGET_KIND]:
        for thing, answer in zip(words_of(line)[3:6], words_of(line)[6:9]):
            if line["damage"] == "wrong_answer":
                assert code.get(thing, "") != answer
            else:
                assert code.setdefault(thing, answer) == answer


@pytest.mark.parametrize("retrieval", RETRIEVALS)
@pytest.mark.parametrize("name", ["decoys", "half_wrong", "behaviour"])
def test_words_do_not_tell_right_from_useless(made, name, retrieval):
    """But for one: a letter is shorter than what it stands for, which a mean of normalised vectors sees."""
    parts = made[name]
    pool = [line for line in parts["pool"] if name == "behaviour" or line["source"] == "route"]
    scores = RETRIEVALS[retrieval](pool, parts["target"])
    yes = np.array([is_right(line, parts) for line in pool])
    for pooled, pool_over in POOLED.items():
        area = area_under_curve(pool_over(scores, axis=1), yes)
        most = 0.15 if (name, retrieval, pooled) == ("behaviour", "tfidf", "mean") else 0.06
        assert abs(area - 0.5) < most, f"{pooled} of {retrieval}: {area:.3f}"


@pytest.mark.parametrize("retrieval", RETRIEVALS)
@pytest.mark.parametrize("name, most", [("other_words", 0.25), ("near_duplicates", 0.4)])
def test_most_of_what_words_find_is_not_right(made, name, most, retrieval):
    parts = made[name]
    scores = RETRIEVALS[retrieval](parts["pool"], parts["target"])
    share = np.mean([is_right(parts["pool"][i], parts) for i in top_quarter(scores)])
    assert share < most
