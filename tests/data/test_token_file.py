import json
import os
import pickle
import re
import stat
from pathlib import Path

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings, strategies

from pipeline.data.sample import IGNORED, Sample, digest
from pipeline.data.token_file import ROWS, TokenFile, damage, remove_stale, write

TEXTS = strategies.text(strategies.characters(exclude_categories=["Cs"]), max_size=8)
SAMPLES = strategies.builds(
    lambda tokens, *about: Sample(
        [token for token, _ in tokens],
        [token if is_supervised else IGNORED for token, is_supervised in tokens],
        *about,
    ),
    strategies.lists(strategies.tuples(strategies.integers(0, 2**31 - 1), strategies.booleans()), max_size=6),
    TEXTS,
    TEXTS,
    TEXTS,
)


def numbered(count, start=0):
    return [
        Sample([i, 7, 8], [IGNORED, 7, IGNORED], f"id {i}", "even" if i % 2 == 0 else "ödd")
        for i in range(start, start + count)
    ]


def kept(path, *parts):
    write(path, parts, lambda: {"samples": sum(map(len, parts))}, beat=lambda: None)
    return TokenFile(path)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=strategies.lists(strategies.lists(SAMPLES, max_size=5), max_size=3))
def test_any_samples_come_back_equal_field_by_field(tmp_path, parts):
    """Empty ones too, with ids up to the largest, any text, and types as they were."""
    found = kept(tmp_path / "a.json", *parts)
    expected = [sample for part in parts for sample in part]
    assert list(found) == expected == [found[i] for i in range(len(found))]
    assert repr(list(found)) == repr(expected)
    assert found.sizes == [len(part) for part in parts] and found.manifest.content == digest(expected)


@pytest.mark.parametrize("sizes", [(0,), (1,), (ROWS - 1,), (ROWS, 0), (ROWS + 1,), (ROWS - 3, 2 * ROWS, 4)])
def test_samples_are_found_across_batches_and_parts(tmp_path, sizes):
    parts = [numbered(size, start=1000 * number) for number, size in enumerate(sizes)]
    found, expected = kept(tmp_path / "a.json", *parts), [sample for part in parts for sample in part]
    assert len(found) == len(expected) and list(found) == expected
    for i in {0, 1, ROWS - 1, ROWS, len(expected) - 1, -1, -len(expected)}:
        if -len(expected) <= i < len(expected):
            assert found[i] == expected[i]
    for i in (len(expected), -len(expected) - 1):
        with pytest.raises(IndexError, match=f"no sample {i} among {len(expected)}"):
            found[i]
    assert [part.by_source for part in found.manifest.parts] == [
        {name: count for name in ("even", "ödd") if (count := sum(sample.source == name for sample in part))}
        for part in parts
    ]


def test_a_sample_is_read_without_the_rest_of_the_file(tmp_path):
    """Arrow's own memory: what is mapped does not count."""
    before = pyarrow.total_allocated_bytes()
    tokens = list(range(1000))
    found = kept(tmp_path / "a.json", [Sample(tokens, tokens, str(i)) for i in range(4 * ROWS)])
    assert found[700].id == "700" and found.manifest.num_bytes > 4_000_000
    assert pyarrow.total_allocated_bytes() - before < 100_000


def test_it_is_pickled_as_its_path(tmp_path):
    found = kept(tmp_path / "a.json", numbered(300))
    content = pickle.dumps(found)
    assert len(content) < 300 and list(pickle.loads(content)) == list(found)


def test_labels_that_are_neither_the_token_nor_ignored_are_not_kept(tmp_path):
    with pytest.raises(AssertionError):
        kept(tmp_path / "a.json", [Sample([1, 2], [2, 2])])


def test_only_the_owner_can_read_the_files(tmp_path):
    kept(tmp_path / "a.json", numbered(1))
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


def test_what_fails_leaves_nothing_behind_and_the_former_file_as_it_was(tmp_path):
    before = kept(tmp_path / "a.json", numbered(5))
    names = sorted(tmp_path.iterdir())

    def failing():
        yield from numbered(2 * ROWS)
        raise KeyError("in the middle")

    def refuse():
        raise ValueError("nothing is left")

    with pytest.raises(KeyError):
        write(tmp_path / "a.json", [failing()], dict, lambda: None)
    with pytest.raises(ValueError, match="nothing is left"):
        write(tmp_path / "a.json", [numbered(9)], refuse, lambda: None)
    assert sorted(tmp_path.iterdir()) == names and list(TokenFile(tmp_path / "a.json")) == list(
        before
    ) == numbered(5)


def test_a_file_that_is_written_again_stays_what_it_was_for_those_who_have_mapped_it(tmp_path):
    path = tmp_path / "a.json"
    before = kept(path, numbered(3))
    after = kept(path, numbered(4))
    files = {file: file.stat().st_ino for file in tmp_path.glob("*.arrow")}
    again = kept(path, numbered(4))
    assert list(before) == numbered(3) and list(after) == list(again) == numbered(4)
    assert {file: file.stat().st_ino for file in tmp_path.glob("*.arrow")} == files, (
        "a mapped file was replaced by its equal"
    )


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def foreign(path):
    """A manifest of other samples, under this name."""
    other = kept(path.with_name("other.json"), numbered(2))
    path.write_text(other.path.read_text())


SPOILED = {
    "truncated": (
        lambda path, data: os.truncate(data, data.stat().st_size - 8),
        r"has [\d,]+ bytes, and [\d,]+ were written",
    ),
    "one bit": (lambda path, data: flip(data), "is not what was written"),
    "no file": (lambda path, data: data.unlink(), "No such file"),
    "no JSON": (lambda path, data: path.write_text("{"), "is no manifest of tokenised samples"),
    "other fields": (
        lambda path, data: path.write_text(json.dumps({"parts": [], "file": "x"})),
        "is no manifest",
    ),
    "a list": (lambda path, data: path.write_text("[]"), "is no manifest"),
    "another's": (lambda path, data: foreign(path), "No such file"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_file_that_was_spoiled_is_found_out(tmp_path, name):
    spoil, message = SPOILED[name]
    path = tmp_path / "a.json"
    kept(path, numbered(600))
    assert damage(path, lambda: None) is None
    spoil(path, next(tmp_path.glob("a.*.arrow")))
    assert re.search(message, damage(path, lambda: None))
    kept(path, numbered(600))
    assert damage(path, lambda: None) is None


def test_what_a_killed_process_left_is_removed_a_day_later(tmp_path):
    """And nothing else that lies in the folder."""
    fresh, old, *others = (
        Path(tmp_path, name) for name in ("a.1.tmp", "a.2.tmp", "a.json", "notes.tmp", "notes.1.tmp")
    )
    for path in (fresh, old, *others):
        path.touch()
        if path is not fresh:
            os.utime(path, (0, 0))
    remove_stale(tmp_path, "[0-9a-f]")
    assert sorted(tmp_path.iterdir()) == sorted([fresh, *others])
