"""SelectionHook in a DeepSpeed loop of one's own (test_trainer.py compares such a loop with
SelectionTrainer)."""

import inspect
import re
from pathlib import Path

import pytest

from pipeline.hook import SelectionHook

EXAMPLE = Path(__file__).parent.parent / "examples/own_loop.py"
STEP = re.compile(r"^step (\d+): kept (\d+) of 16, (\d+) of them wanted; cosine (.*)$", re.MULTILINE)


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_library_example_keeps_what_the_target_asks_for(run_ranks, world_size):
    """Half of the candidates are of the wanted kind."""
    first, *others = run_ranks("tests.example_cases:run", world_size, script=str(EXAMPLE))
    steps = STEP.findall(first)
    assert [int(step) for step, *_ in steps] == list(range(20)) and not any(others)
    assert all(float(cosine) > 0 for *_, cosine in steps)
    kept, wanted = (sum(int(found[column]) for found in steps) for column in (1, 2))
    assert wanted > 0.8 * kept, f"{wanted} of {kept} kept samples are of the target's kind"


@pytest.mark.parametrize("name", ["attach", "select", "score", "micro_batches", "weighted_loss"])
def test_the_library_interface_says_what_goes_in_and_what_comes_out(name):
    """Types of all arguments and of the result, and each argument in the docstring."""
    method = getattr(SelectionHook, name)
    signature = inspect.signature(method)
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in list(signature.parameters.values())[name != "attach" :]:
        assert parameter.name == "engine" or parameter.annotation is not inspect.Parameter.empty, (
            parameter.name
        )
        assert parameter.name == "batch" or f"{parameter.name}:" in method.__doc__, parameter.name
