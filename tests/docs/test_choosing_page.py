"""docs/choosing.md recommends by numbers that are still there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_measured_number_stands_in_the_results():
    """Those with a decimal point, but for values of settings (ridge: 1.0; betas)."""
    page = re.sub(r"`[^`]*`", "", (ROOT / "docs" / "choosing.md").read_text())
    results = "".join((ROOT / name).read_text() for name in ("benchmarks/RESULTS.md", "docs/planning.md"))
    numbers = set(re.findall(r"(?<![\w.])\d+\.\d+", page)) - {"1.0", "0.99", "0.95"}
    assert len(numbers) > 40
    assert not [
        number for number in numbers if not re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", results)
    ]
