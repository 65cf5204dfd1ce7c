"""With the real library, on data sets that it wrote itself; nothing here asks the network."""

import json

import datasets
import pytest

from pipeline.data.sources import read, records_of

COLUMNS = {"question": "prompt", "answer": "completion"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """two/: configurations main and socratic, as gsm8k has; saved/ and saved_splits/: of save_to_disk;
    lines/: two files of lines."""
    folder = tmp_path_factory.mktemp("hub")
    rows = lambda name, n: datasets.Dataset.from_list(
        [{"question": f"{name} {i}", "answer": str(i)} for i in range(n)]
    )
    (folder / "two").mkdir()
    for name in ("main", "socratic"):
        rows(name, 8).to_parquet(folder / f"two/{name}.parquet")
    rows("test", 2).to_parquet(folder / "two/test.parquet")
    (folder / "two/README.md").write_text(
        "---\nconfigs:\n"
        "- config_name: main\n  data_files:\n  - split: train\n    path: main.parquet\n  - split: test\n    "
        "path: test.parquet\n- config_name: socratic\n  data_files:\n  - split: train\n    path: "
        "socratic.parquet\n---\n"
    )
    rows("saved", 8).save_to_disk(folder / "saved")
    datasets.DatasetDict(train=rows("train", 8), dev=rows("dev", 2)).save_to_disk(folder / "saved_splits")
    (folder / "lines").mkdir()
    for part, names in (("0", "ab"), ("1", "cd")):
        lines = [json.dumps({"text": name}) + "\n" for name in names]
        (folder / f"lines/train-{part}.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture(autouse=True)
def cache(folder, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True, raising=False)
    datasets.disable_progress_bars()


@pytest.mark.parametrize(
    "name, prompts",
    [
        ("two:main:train", [f"main {i}" for i in range(8)]),
        ("two:main:test", ["test 0", "test 1"]),
        ("two:socratic:train[:3]", ["socratic 0", "socratic 1", "socratic 2"]),
        ("two:main:train[75%:]+test[:1]", ["main 6", "main 7", "test 0"]),
        ("saved", [f"saved {i}" for i in range(8)]),
        ("saved:train[2:4]", ["saved 2", "saved 3"]),
        ("saved_splits", [f"train {i}" for i in range(8)]),
        ("saved_splits:dev+train[-1:]", ["dev 0", "dev 1", "train 7"]),
        ("stream:two:main:train", [f"main {i}" for i in range(8)]),
        ("stream:two:socratic:train[:2]", ["socratic 0", "socratic 1"]),
    ],
)
def test_a_name_says_which_rows(folder, monkeypatch, name, prompts):
    monkeypatch.chdir(folder)
    found, counts = read([name], "error", columns=COLUMNS)
    assert [record.prompt for record in found] == prompts
    assert counts == {"samples": len(prompts)}
    assert found[0].origin == f"{name}:1" and found[0].source == name.removeprefix("stream:")


def test_a_folder_of_files_is_read_and_a_slice_of_it(folder):
    assert [record.text for record in read([f"{folder}/lines"], "error")[0]] == ["a", "b", "c", "d"]
    assert [record.text for record in read([f"{folder}/lines:train[1:3]"], "error")[0]] == ["b", "c"]


def test_a_stream_reads_no_further_than_it_must(folder, tmp_path):
    for part in "01":  # the library looks one file ahead
        (tmp_path / f"train-{part}.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    (tmp_path / "train-2.jsonl").write_text("this is no JSON\n")
    assert [record.text for record in read([f"stream:{tmp_path}:train[:2]"], "error")[0]] == ["a", "b"]
    found = records_of(f"stream:{tmp_path}", "error", "data.pool", {})
    assert [next(found).text, next(found).text] == ["a", "b"]
    with pytest.raises(ValueError, match=r"data\.pool: stream:.* cannot be read: "):
        list(found)
    with pytest.raises(ValueError, match="cannot be read: "):
        read([f"{tmp_path}:train[:2]"], "error")


@pytest.mark.parametrize(
    "name, reason",
    [
        (
            "two",
            r"Config name is missing.*\(a configuration stands before the split: .*two:configuration:split\)",
        ),
        ("two:main", "Config name is missing"),
        ("two:nothing:train", "BuilderConfig 'nothing' not found"),
        ("two:main:nothing", 'Unknown split "nothing"'),
        ("saved_splits:nothing", 'Unknown split "nothing"'),
        ("saved:main:train", "save_to_disk wrote has no configurations"),
        ("stream:saved", "is read row by row anyhow"),
        ("stream:two:main:train[4:]", r"a stream is read from its first row on: train\[4:\]"),
        ("stream:two:main:train[:50%]", "a stream is read from its first row on"),
        ("stream:two:main:train+test", "a stream is read from its first row on"),
        ("two:a:b:c", "is no name: expected name, name:split or name:configuration:split"),
        ("two::train", "is no name"),
        ("nowhere/at_all", "cannot be read: "),
    ],
)
def test_what_cannot_be_read_says_why(folder, monkeypatch, name, reason):
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match=rf"data\.test: .* is not a file of the kinds .*{reason}"):
        read([name], "error", "data.test")


def test_code_that_comes_with_a_dataset_does_not_run(tmp_path):
    folder = tmp_path / "scripted"
    folder.mkdir()
    (folder / "scripted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ValueError, match="cannot be read"):
        read([str(folder)], "error")
    assert not (tmp_path / "ran").exists()


def test_structs_have_no_fields_that_only_other_rows_have(tmp_path):
    call = lambda name, arguments: {"name": name, "arguments": arguments}
    chat = lambda call: [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]
    rows = [{"messages": chat(call("f", {"x": 1}))}, {"messages": chat(call("g", {"y": "b"}))}]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "calls")
    found = read([str(tmp_path / "calls")], "error")[0]
    assert [record.messages[1]["tool_calls"][0]["function"] for record in found] == [
        call("f", {"x": 1}),
        call("g", {"y": "b"}),
    ]
