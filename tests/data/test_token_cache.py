import json
import os
import random
import shutil
import time
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from pipeline.config import DataConfig
from pipeline.data import chat, sources, token_cache
from pipeline.data.chat import tokenize_all
from pipeline.data.sample import digest
from pipeline.data.token_cache import obtain
from pipeline.data.token_file import TokenFile
from tests.conftest import CHATML, tokenizer

QUIET = lambda: None


def rows(count, seed=0):
    """In all formats, some without ids, too long, in letters that the tokenizer does not know, or broken."""
    rng = random.Random(seed)
    text = lambda: "".join(rng.choice("abc xyz\n+é<|im_end|>𝄞") for _ in range(rng.choice([1, 5, 40]))) + "a"
    forms = [
        lambda: {
            "messages": [{"role": "user", "content": text()}, {"role": "assistant", "content": text()}]
            * rng.randint(1, 2)
        },
        lambda: {"prompt": text(), "completion": text()},
        lambda: {
            "prompt": [{"role": "user", "content": text()}],
            "completion": [{"role": "assistant", "content": text()}],
        },
        lambda: {"instruction": text(), "input": rng.choice(["", "b"]), "output": text()},
        lambda: {"text": text()},
        lambda: {"prompt": text(), "completion": " "},
    ]
    about = lambda: rng.choice(
        [{}, {"id": rng.randint(0, 9)}, {"source": "sürce", "corruption": rng.choice(["none", "wrong"])}]
    )
    return [{**rng.choice(forms)(), **about()} for _ in range(count)]


@pytest.fixture
def data(tmp_path):
    """Settings over two files, with a cache folder that is not there yet."""
    files = tmp_path / "files"
    files.mkdir()
    (files / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(100)))
    filled = [
        {**dict.fromkeys(("prompt", "completion", "text", "id")), **row}
        for row in rows(40, seed=1)
        if "text" in row
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(filled), files / "b.parquet")
    names = [str(files / "a.jsonl"), str(files / "b.parquet")]
    return DataConfig(
        pool=names, on_broken="skip", max_tokens=30, cache_folder=str(tmp_path / "cache" / "tokens")
    )


def kept(data, tokens=None, beat=QUIET):
    return obtain(data.pool, tokens or tokenizer(), data, "data.pool", beat, shows_progress=False)


def in_memory(data, tokens=None):
    records, counts = sources.read(data.pool, data.on_broken)
    samples, token_counts = tokenize_all(records, tokens or tokenizer(), data)
    return samples, {**counts, **token_counts}


@pytest.mark.parametrize(
    "changes", [{}, {"on_long": "drop"}, {"loss_on": "all"}, {"max_tokens": 200}, {"cache_folder": ""}]
)
def test_samples_and_counts_equal_those_that_are_made_in_memory(data, changes):
    data = replace(data, **changes)
    samples, counts = in_memory(data)
    assert len(samples) > 20 and counts["empty answer"] > 5
    first = kept(data)
    again = kept(data)
    for found in (TokenFile(first.manifest), TokenFile(again.manifest)):
        assert list(found) == samples
        assert found.manifest.counts == counts and list(found.manifest.counts) == list(counts)
        assert found.manifest.content == digest(samples)
        assert found.sizes[0] == len(in_memory(replace(data, pool=data.pool[:1]))[0])
    assert (first.is_reused, again.is_reused) == (False, bool(data.cache_folder))
    if not data.cache_folder:
        assert first.is_temporary and first.manifest.parent != again.manifest.parent
        for one in (first, again):
            shutil.rmtree(one.manifest.parent)


@pytest.fixture
def encoded(monkeypatch):
    """The records that were tokenised."""
    found, original = [], chat._encode
    monkeypatch.setattr(
        chat, "_encode", lambda record, *others: found.append(record.id) or original(record, *others)
    )
    return found


def moved(data):
    folder = Path(data.pool[0]).parent
    return replace(data, pool=[str(shutil.copy(name, folder.with_name("elsewhere"))) for name in data.pool])


def renamed(data):
    return replace(
        data,
        pool=[
            os.rename(data.pool[0], name := data.pool[0].replace("a.jsonl", "c.jsonl")) or name,
            data.pool[1],
        ],
    )


def one_byte(data):
    content = Path(data.pool[0]).read_text()
    Path(data.pool[0]).write_text(content.replace("x", "y", 1))
    return data


def touched(data):
    os.utime(data.pool[0], (0, 0))
    return data


SETTINGS = {
    "nothing": (lambda data: data, True),
    "moved": (moved, True),
    "touched": (touched, True),
    "what is aimed at": (
        lambda data: replace(data, target=["x"], test=["y"], rotate_targets=False, pool_weights=[3, 1]),
        True,
    ),
    "renamed": (renamed, False),
    "one byte": (one_byte, False),
    "order": (lambda data: replace(data, pool=data.pool[::-1]), False),
    "fewer": (lambda data: replace(data, pool=data.pool[:1]), False),
    "max_tokens": (lambda data: replace(data, max_tokens=31), False),
    "on_long": (lambda data: replace(data, on_long="drop"), False),
    "loss_on": (lambda data: replace(data, loss_on="all"), False),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_only_what_samples_follow_from_makes_them_anew(data, encoded, tmp_path, name):
    change, is_reused = SETTINGS[name]
    (tmp_path / "elsewhere").mkdir()
    kept(data)
    num_encoded = len(encoded)
    data = change(data)
    found = kept(data)
    assert found.is_reused is is_reused and found.notes == []
    assert (len(encoded) == num_encoded) is is_reused and num_encoded > 60
    assert list(TokenFile(found.manifest)) == in_memory(data)[0]


def with_token(made):
    made.add_tokens(["xy"])


def called(made):
    """Padding and truncation of a call are no part of a tokenizer."""
    made(["a", "bcd"], padding=True, truncation=True, max_length=2)


TOKENIZERS = {
    "nothing": (lambda made: None, True),
    "a call": (called, True),
    "another token": (with_token, False),
    "template": (
        lambda made: setattr(made, "chat_template", CHATML.replace("<|im_end|>", ".<|im_end|>")),
        False,
    ),
    "end token": (lambda made: setattr(made, "eos_token", "<pad>"), False),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_another_tokenizer_or_template_makes_samples_anew(data, name):
    change, is_reused = TOKENIZERS[name]
    kept(data)
    changed = tokenizer()
    change(changed)
    found = kept(data, changed)
    assert found.is_reused is is_reused
    assert list(TokenFile(found.manifest)) == in_memory(data, changed)[0]


def test_a_change_in_the_code_that_makes_samples_makes_them_anew(data, tmp_path, monkeypatch):
    kept(data)
    copy = Path(shutil.copytree(Path(token_cache.__file__).parent, tmp_path / "code"))
    monkeypatch.setattr(token_cache, "__file__", str(copy / "token_cache.py"))
    assert kept(data).is_reused
    with open(copy / "markers.py", "a") as file:
        file.write("# changed\n")
    assert not kept(data).is_reused


@pytest.mark.parametrize("library", token_cache.LIBRARIES)
def test_another_version_of_a_library_makes_samples_anew(data, library, monkeypatch):
    kept(data)
    installed = token_cache.version
    monkeypatch.setattr(token_cache, "version", lambda name: "0.1" if name == library else installed(name))
    assert not kept(data).is_reused


def test_what_was_spoiled_is_made_again_and_said(data):
    first = kept(data)
    expected = list(TokenFile(first.manifest))
    (stored,) = Path(data.cache_folder).glob("*.arrow")
    os.truncate(stored, stored.stat().st_size // 2)
    again = kept(data)
    assert (
        not again.is_reused
        and again.manifest == first.manifest
        and list(TokenFile(again.manifest)) == expected
    )
    (note,) = again.notes
    assert (
        note.startswith("data.pool is tokenised again, as what was kept of it cannot be used: ")
        and "were written" in note
    )
    assert kept(data).is_reused


def test_nothing_is_kept_of_what_is_refused(data, tmp_path):
    with pytest.raises(ValueError, match=r"a\.jsonl:\d+: empty answer"):
        kept(replace(data, on_broken="error"))
    with pytest.raises(
        ValueError, match=r"data\.pool: none of the \d+ samples is left .* data\.max_tokens = 2"
    ):
        kept(replace(data, max_tokens=2, on_long="drop"))
    assert list(Path(data.cache_folder).iterdir()) == []
    with pytest.raises(ValueError, match=r"data\.pool: there is no file .*nowhere\.jsonl"):
        kept(replace(data, pool=[str(tmp_path / "nowhere.jsonl")]))


def test_a_file_that_is_written_to_meanwhile_is_refused(data):
    """It would be kept under the key of what it was."""
    calls = []

    def beat():
        calls.append(None)
        if len(calls) == 50:
            with open(data.pool[0], "a") as file:
                file.write("\n")

    with pytest.raises(ValueError, match="a file was written to while it was read"):
        kept(data, beat=beat)
    assert list(Path(data.cache_folder).iterdir()) == [] and not kept(data).is_reused


def test_a_folder_that_cannot_be_written_names_the_setting(data):
    with pytest.raises(
        ValueError,
        match=r"data\.cache_folder: tokenised samples cannot be kept in .*a\.jsonl/x: .*Name a folder",
    ):
        kept(replace(data, cache_folder=f"{data.pool[0]}/x"))


def test_the_folder_is_private_and_auto_is_in_hugging_faces_cache(data, monkeypatch):
    kept(data)
    assert Path(data.cache_folder).stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(token_cache.constants, "HF_HOME", "/hf")
    assert token_cache.folder_of(DataConfig()) == Path("/hf/filter_then_weight")
    monkeypatch.setenv("SCRATCH", "/scratch")
    assert token_cache.folder_of(DataConfig(cache_folder="$SCRATCH/t")) == Path("/scratch/t")
    assert token_cache.folder_of(DataConfig(cache_folder="~/t")) == Path.home() / "t"


@pytest.mark.parametrize(
    "write, prefix, is_kept",
    [
        (lambda rows, folder: rows.to_parquet(folder / "train.parquet"), "", True),
        (lambda rows, folder: rows.save_to_disk(folder), "", True),
        (lambda rows, folder: rows.to_parquet(folder / "train.parquet"), "stream:", False),
    ],
)
def test_a_dataset_is_known_by_its_fingerprint(data, tmp_path, monkeypatch, encoded, write, prefix, is_kept):
    """Hugging Face's own; a stream, which has none, is tokenised at every start, and that is said."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()
    folder = tmp_path / "dataset"
    folder.mkdir()
    named = replace(data, pool=[f"{prefix}{folder}"])
    for texts in (["abc", "bcd"], ["abc", "bce", "a"]):
        rows = datasets.Dataset.from_list([{"text": text} for text in texts])
        write(rows, folder)
        encoded.clear()
        first, second = kept(named), kept(named)
        assert (first.is_reused, second.is_reused) == (False, is_kept) and len(encoded) == len(texts) * (
            1 if is_kept else 2
        )
        assert list(TokenFile(second.manifest)) == in_memory(named)[0] and len(
            TokenFile(first.manifest)
        ) == len(texts)
        for found in (first, second):
            assert found.is_temporary is not is_kept
            note = f"data.pool is tokenised anew at every start: {prefix}{folder} does not say what it holds"
            assert found.notes == ([] if is_kept else [note])
            if found.is_temporary:
                shutil.rmtree(found.manifest.parent)


def test_a_dataset_that_was_made_again_has_other_samples(data, tmp_path, monkeypatch):
    """By the same function, of which alone the library makes its hash."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()
    answer, folder = tmp_path / "answer", str(tmp_path / "dataset")
    rows = datasets.Dataset.from_list([{"prompt": "a"}, {"prompt": "b"}])
    for text in ("x", "y"):
        answer.write_text(text)
        rows.map(lambda row: {"completion": answer.read_text()}, load_from_cache_file=False).save_to_disk(
            folder
        )
        named = replace(data, pool=[folder])
        found = kept(named), kept(named)
        assert [one.is_reused for one in found] == [False, True]
        assert list(TokenFile(found[1].manifest)) == in_memory(named)[0]


def test_what_others_have_in_the_folder_stays(data, tmp_path):
    """A folder of one's own need not be empty."""
    other, left = tmp_path / "thesis.tmp", tmp_path / f"{'0' * 32}.abc.tmp"
    for path in (other, left):
        path.touch()
        os.utime(path, (0, 0))
    kept(replace(data, cache_folder=str(tmp_path)))
    assert other.exists() and not left.exists()


def test_a_download_counts_as_going_on_and_its_error_comes_through():
    beats = []
    assert (
        token_cache._beating(lambda: time.sleep(1.3) or "fingerprint", lambda: beats.append(None))
        == "fingerprint"
    )
    assert beats
    with pytest.raises(KeyError, match="no such dataset"):
        token_cache._beating(lambda: {}["no such dataset"], QUIET)


def test_columns_have_the_names_that_they_are_given(data, tmp_path):
    """``data.columns`` reaches what a run reads, and other columns are another key."""
    path = tmp_path / "rows.csv"
    path.write_text("question,answer,short\n1+1,is 2,2\n")
    named = replace(data, pool=[str(path)], columns={"question": "prompt", "answer": "completion"})
    (sample,) = TokenFile(kept(named).manifest)
    assert tokenizer().decode(sample.input_ids) == "1+1is 2<|im_end|>"
    (other,) = TokenFile(kept(replace(named, columns={"question": "prompt", "short": "completion"})).manifest)
    assert tokenizer().decode(other.input_ids) == "1+12<|im_end|>"


def test_records_and_samples_come_one_at_a_time(data):
    """What is broken further on is not met before it is asked for."""
    path = Path(data.pool[0])
    path.write_text('{"text": "a"}\n{"text": "b"}\n{')
    records = sources.records_of(str(path), "error", "data.pool", Counter())
    samples = chat.tokenize_each(records, tokenizer(), data, Counter())
    assert [sample.id for sample in islice(samples, 2)] == ["a:1", "a:2"]
    with pytest.raises(ValueError, match=r"a\.jsonl:3: malformed JSON"):
        next(samples)
