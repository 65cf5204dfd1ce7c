# C candidates, T tokens
"""Every way to the Gram matrix that the benchmark compares leads to the same one."""

from importlib.util import find_spec

import pytest
import torch

from benchmarks.peer_grams import OPTIONAL, PEERS, pose, reference, relative_error
from tests.reference import VOCABULARY, tiny_llama

EXACT = [name for name in PEERS if name not in ("ours_projected", "ours_factored")]
NUM_CANDIDATES, NUM_OTHERS, NUM_TOKENS = 3, 4, 11


@pytest.fixture(scope="module")
def problem():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, VOCABULARY, (NUM_CANDIDATES + NUM_OTHERS, NUM_TOKENS), generator=generator)
    return pose(tiny_llama(attention="sdpa").float(), ids[:NUM_CANDIDATES], ids[NUM_CANDIDATES:])


@pytest.mark.parametrize("name", EXACT)
def test_gram_equals_the_float64_reference(problem, name):
    """Small v turn float32's rounding of a gradient into a relative error of phi, as in test_gram.py:
    5e-4."""
    if name in OPTIONAL and not find_spec(name):
        pytest.skip(f"{name} is not installed: pip install --no-deps -r benchmarks/requirements.txt")
    with PEERS[name](problem) as run:
        found = [run(), run()]
    expected = reference(problem)
    for gram_CC in found:  # the second run sees what the first has left
        assert gram_CC.shape == (NUM_CANDIDATES, NUM_CANDIDATES)
        assert relative_error(gram_CC, expected) < 5e-4, f"{name}:\n{gram_CC}\nreference:\n{expected}"


@pytest.mark.parametrize("name", EXACT)
def test_a_peer_leaves_the_model_as_it_was(problem, name):
    if name in OPTIONAL and not find_spec(name):
        pytest.skip(f"{name} is not installed: pip install --no-deps -r benchmarks/requirements.txt")
    trained = lambda: [
        name for name, parameter in problem.model.named_parameters() if parameter.requires_grad
    ]
    before = trained()
    with PEERS[name](problem) as run:
        run()
    assert trained() == before and not any(module.training for module in problem.model.modules())
    assert all(p.grad is None and not hasattr(p, "grad_sample") for p in problem.model.parameters())
    assert not any(module._forward_hooks or module._backward_hooks for module in problem.model.modules())
