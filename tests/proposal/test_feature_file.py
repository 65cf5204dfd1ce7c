import numpy as np
import pytest

from pipeline.data import token_file
from pipeline.data.token_file import TokenFile
from pipeline.proposal import feature_file, features
from tests.proposal.samples import pool_of_two_kinds

ARRAYS = feature_file.ARRAYS


def file_of(samples, path):
    token_file.write(path, [samples], dict, lambda: None)
    return TokenFile(path)


@pytest.fixture
def data(tmp_path):
    pool, targets = pool_of_two_kinds(30, seed=1)[0], pool_of_two_kinds(6, seed=2)[0]
    return file_of(pool, tmp_path / "pool.json"), file_of(targets, tmp_path / "target.json")


def same(one, other):
    return all(np.array_equal(getattr(one.table, name), getattr(other.table, name)) for name in ARRAYS)


def test_features_are_made_once_and_mapped_then(data, tmp_path):
    first = feature_file.obtain(*data, tmp_path / "kept")
    again = feature_file.obtain(*data, tmp_path / "kept")
    assert not first.is_reused and again.is_reused and same(first, again)
    assert isinstance(again.table.features_Nd, np.memmap)
    assert (again.seconds, again.cpu_seconds) == (first.seconds, first.cpu_seconds), "the price stays known"
    assert not list((tmp_path / "kept").glob("*.tmp"))


def test_another_pool_target_or_code_makes_others(data, tmp_path, monkeypatch):
    pool, targets = data
    feature_file.obtain(pool, targets, tmp_path)
    other = file_of(pool_of_two_kinds(6, seed=3)[0], tmp_path / "other.json")
    assert not feature_file.obtain(pool, other, tmp_path).is_reused
    assert not feature_file.obtain(other, targets, tmp_path).is_reused
    monkeypatch.setattr(features, "__file__", __file__)
    assert not feature_file.obtain(pool, targets, tmp_path).is_reused


def test_a_damaged_or_missing_file_is_made_again(data, tmp_path):
    first = feature_file.obtain(*data, tmp_path / "kept")
    for harm in ("cut", "changed", "gone", "nonsense"):
        array = next((tmp_path / "kept").glob("*.features_Nd.npy"))
        about = next((tmp_path / "kept").glob("*.features.json"))
        content = array.read_bytes()
        if harm == "cut":
            array.write_bytes(content[:-1])
        elif harm == "changed":
            array.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        elif harm == "gone":
            array.unlink()
        else:
            about.write_text("{")
        found = feature_file.obtain(*data, tmp_path / "kept")
        assert not found.is_reused and same(found, first), harm


def test_without_a_folder_nothing_is_kept(data, tmp_path):
    before = sorted(path.name for path in tmp_path.iterdir())
    found = feature_file.obtain(*data, None)
    assert not found.is_reused and sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_folder_that_cannot_be_written_is_named_and_costs_a_run_nothing_else(data, tmp_path):
    (tmp_path / "file").write_text("")
    found = feature_file.obtain(*data, tmp_path / "file" / "below")
    assert same(found, feature_file.obtain(*data, None)) and not found.is_reused
    assert found.note.startswith("features of data.pool are made anew at every start: ")
    assert "data.cache_folder" in found.note
