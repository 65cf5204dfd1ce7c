"""What the pages show is what the result files say."""

import json

import pytest

from benchmarks import pages

RESULT = {
    "settings": {
        "backend": "exact",
        "last_blocks": 8,
        "cases": ["full"],
        "candidates": 4,
        "tokens": 64,
        "rounds": 2,
    },
    "world_size": 2,
    "full": {
        "time_ratio": 0.714,
        "time_ratio_range": [0.69, 0.738],
        "time_ratio_with_target": 0.9,
        "memory_ratio": 1.25,
    },
}


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_no_table_is_older_than_its_file(page):
    """Renewed with python -m benchmarks.pages."""
    text = page.read_text()
    assert pages.BLOCK.search(text), "a page without tables"
    assert pages.render(text) == text


def test_a_table_is_made_anew_and_the_rest_of_the_page_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    (tmp_path / "r.json").write_text(json.dumps(RESULT))
    rendered = pages.render(
        "before\n<!-- step_cost r.json -->\n| old |\n<!-- end -->\nafter <!-- no table -->\n"
    )
    assert rendered.startswith("before\n<!-- step_cost r.json -->\n| ") and rendered.endswith(
        "<!-- end -->\nafter <!-- no table -->\n"
    )
    assert (
        "| full, `exact`, last 8 blocks, 2 ranks | 4 x 64 | 0.71 (0.69-0.74) | 0.90 | 1.25 | 2 |" in rendered
    )
    assert "old" not in rendered


@pytest.mark.parametrize(
    "block, message",
    [
        ("<!-- magic r.json -->\n<!-- end -->", "tables are made by"),
        ("<!-- peers gone.json -->\n<!-- end -->", "no result file gone.json"),
    ],
)
def test_an_unknown_table_or_file_is_refused(block, message):
    with pytest.raises(ValueError, match=message):
        pages.render(block)
