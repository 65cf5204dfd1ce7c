"""How predictions are compared with results of ``benchmarks.step_cost``."""

import pytest

from benchmarks import plan_error
from pipeline.planning.hardware import BUILT_IN


def test_a_result_is_compared_with_the_prediction_for_its_own_settings():
    settings = {"model": "llama-1b", "candidates": 4, "targets": 2, "tokens": 64, "lora_rank": 16, "stage": 2}
    seconds = {"plain": [0.2, 0.1, 0.3], "scoring": [0.4], "target": [0.1]}
    result = {
        "settings": settings,
        "world_size": 1,
        "lora": {"seconds": seconds, "time_ratio": 2.0, "stages": {}},
    }
    one = plan_error.compare(result, "lora", "factored", BUILT_IN["h100"])
    for name, median in (("plain", 0.2), ("scoring", 0.4), ("target", 0.1)):
        assert one["measured_seconds"][name] == median
        assert one["predicted_over_measured"][name] == pytest.approx(
            one["predicted_seconds"][name] / median, rel=1e-3
        )
    assert sum(one["predicted_stages"]["plain"].values()) == pytest.approx(
        one["predicted_seconds"]["plain"], rel=1e-3
    )
    twice = {
        **one,
        "predicted_over_measured": {
            name: 2 * value for name, value in one["predicted_over_measured"].items()
        },
    }
    found = plan_error.summary([one, twice])
    assert found["largest_ratio"] >= 2 * found["smallest_ratio"]
    assert found["smallest_ratio_to_plain"] == found["largest_ratio_to_plain"]
