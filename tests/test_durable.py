"""What is written for good is there whole, whenever the machine goes down."""

import hashlib
import os

import pytest

from pipeline import durable


class Killed(BaseException):
    pass


@pytest.mark.parametrize("call", ["fsync", "rename"])
@pytest.mark.parametrize("before", [None, b"before"])
def test_a_kill_at_any_moment_leaves_the_old_file_or_the_new_one(tmp_path, monkeypatch, call, before):
    original, left = getattr(os, call), []
    for die_at in range(1, 10):
        path, count = tmp_path / f"{die_at}.json", 0
        if before is not None:
            path.write_bytes(before)

        def dying(*arguments, die_at=die_at):
            nonlocal count
            count += 1
            if count == die_at:
                raise Killed
            return original(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, dying)
            try:
                durable.write_text(path, "after")
            except Killed:
                left.append(path.read_bytes() if path.exists() else None)
                continue
        assert path.read_bytes() == b"after"
        assert durable.partial(path).exists() is False
        break
    assert set(left) <= {before, b"after"} and before in left


def test_content_is_on_the_disk_before_it_has_its_name_and_the_name_after(tmp_path, monkeypatch):
    done, fsync, rename = [], os.fsync, os.rename
    names = {tmp_path.stat().st_ino: "folder"}

    def force(descriptor):
        done.append(("fsync", names.get(os.fstat(descriptor).st_ino, "file"), os.fstat(descriptor).st_size))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", force)
    monkeypatch.setattr(os, "rename", lambda *names: done.append(("rename",)) or rename(*names))
    durable.write_bytes(tmp_path / "a", b"12345")
    assert [step[:2] for step in done] == [("fsync", "file"), ("rename",), ("fsync", "folder")]
    assert done[0][2] == 5


def test_what_another_process_left_unfinished_is_taken_over(tmp_path):
    path = tmp_path / "a.json"
    durable.partial(path).write_text("half of something longer than what comes now")
    durable.write_text(path, "ö")
    assert os.listdir(tmp_path) == ["a.json"] and path.read_bytes() == "ö".encode()


def test_half_of_a_surrogate_pair_is_refused_or_escaped_as_asked(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(UnicodeEncodeError):
        durable.write_text(path, "\ud83d")
    assert not path.exists()
    durable.write_text(path, "\ud83d", errors="backslashreplace")
    assert path.read_text() == r"\ud83d"


@pytest.mark.parametrize("size", [0, 1, durable.BLOCK, durable.BLOCK + 1, 3 * durable.BLOCK])
def test_size_and_hash_are_those_of_the_whole_content(tmp_path, size):
    content, beats = bytes(i % 251 for i in range(251)) * (size // 251 + 1), []
    (tmp_path / "a").write_bytes(content[:size])
    found = durable.described(tmp_path / "a", lambda: beats.append(1))
    assert found == (size, hashlib.sha256(content[:size]).hexdigest())
    assert len(beats) == -(-size // durable.BLOCK)
