# B samples, T tokens
"""Activations that a pass saves, byte for byte, and what of the rest follows from definitions."""

from dataclasses import replace

import pytest
import torch

from pipeline.planning import backends, memory, passes
from pipeline.planning.model_shapes import shapes_of
from pipeline.scoring.exact import ExactGram
from pipeline.scoring.factors import leaf_module, scored_layers, scoring_pass
from pipeline.scoring.loss import causal_logits, per_sample_loss, per_sample_loss_in_chunks
from pipeline.scoring.moments import Fragment
from pipeline.scoring.owners import OwnerMap
from pipeline.scoring.stopwatch import Stopwatch
from tests.planning.plan_cases import Alone, sizes
from tests.reference import add_lora, tiny_llama
from tests.scoring.problem import problem
from tests.scoring.test_long_contexts import peak_bytes

B, T = 2, 32


def saved_bytes(model, action) -> int:
    """Of distinct storages that autograd keeps during ``action``, without parameters and buffers."""
    known = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept, sizes = [], {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept.append(storage)  # so that no other takes its address
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = action()
    del output
    return sum(sizes.values())


@pytest.mark.parametrize("is_scoring", (False, True))
@pytest.mark.parametrize("attention", ("sdpa", "eager"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("kind", ("full", "lora"))
def test_saved_activations_of_a_block(kind, dtype, attention, is_scoring):
    """As many key as query heads: on CPU no kernel takes grouped ones. Two models that differ by two
    blocks."""
    measured = []
    for num_blocks in (1, 3):
        model = tiny_llama(attention=attention, num_hidden_layers=num_blocks, num_key_value_heads=6).to(dtype)
        model = add_lora(model) if kind == "lora" else model
        input_ids_BT = torch.randint(3, 70, (B, T))

        def score(model=model, input_ids_BT=input_ids_BT):
            with scoring_pass(model, scored_layers(model), lambda *_: None, leaf_module(model)):
                output = model(input_ids=input_ids_BT, use_cache=False).logits
                output.sum().backward(retain_graph=True)  # or the pass misses the factors of every layer
                return output

        measured.append(
            saved_bytes(model, score if is_scoring else lambda m=model, x=input_ids_BT: m(input_ids=x).logits)
        )
    run = sizes(tokens=T, element_size=dtype.itemsize, is_flash=attention != "eager")
    planned = memory.saved_per_token(shapes_of(model, "tiny"), run, is_scoring)
    assert (measured[1] - measured[0]) / 2 / B / T == planned


def test_states_are_split_as_zero_splits_them():
    """ZeRO (arXiv 1910.02054), figure 1: a model of 7.5 B on 64 ranks takes 120 GB, 31.4, 16.6 and 1.9,
    gradients included."""
    shapes = replace(
        shapes_of(tiny_llama(), "tiny"), parameters=7_500_000_000, trained_parameters=7_500_000_000
    )
    for stage, gigabytes in ((0, 120), (1, 31.4), (2, 16.6), (3, 1.9)):
        run = sizes(world_size=64, zero_stage=stage, element_size=2)
        # gathered for a moment; the paper leaves them out
        live = 2 * memory.MAX_LIVE_PARAMETERS if stage == 3 else 0
        found = memory.states(shapes, run) + memory.gradients(shapes, run) - live
        assert found / 1e9 == pytest.approx(gigabytes, abs=0.1)


def test_smaller_micro_batches_and_shallower_scoring_need_less():
    shapes = shapes_of(tiny_llama(num_hidden_layers=4), "tiny")
    peak = lambda **changes: memory.scoring(shapes, sizes({"backend": "factored", **changes}))
    assert peak(scoring_micro_batch_size=1) < peak()
    assert peak(last_blocks=1) < peak()


@pytest.mark.parametrize("logits_mib", (0, 1))
def test_peak_of_a_scoring_pass_with_logits_in_parts(logits_mib):
    """Samples of 300 tokens and 4,000 words: logits of 9.2 MiB, or parts of at most 1 MiB."""
    model = tiny_llama(attention="sdpa", tied=True, vocab_size=4000, num_key_value_heads=6).float()
    run = sizes({"logits_mib": logits_mib, "scoring_micro_batch_size": 2}, tokens=300, is_flash=True)
    shapes, input_ids_BT = shapes_of(model, "tiny"), torch.randint(3, 70, (2, 300))
    num_chunks = passes.logit_chunks(shapes, run, 2)
    assert num_chunks == (0 if logits_mib == 0 else 10)

    def score():
        with scoring_pass(model, scored_layers(model), lambda *_: None, leaf_module(model)):
            if num_chunks:
                loss_B = per_sample_loss_in_chunks(model, input_ids_BT, input_ids_BT, num_chunks)
            else:
                loss_B = per_sample_loss(causal_logits(model, input_ids_BT), input_ids_BT)
            loss_B.sum().backward()

    assert peak_bytes(score) == pytest.approx(memory.activations(shapes, run, 2), rel=0.25)


class Peers(Alone):
    """Rank 0 of 4 whose peers own as much and send zeros; buffers live as long as in
    ``Collectives.rows_to_owners``."""

    world_size = 4

    def __init__(self, slices):
        self.slices = slices

    def gather_objects(self, value):
        return self.slices

    def rows_to_owners(self, pieces):
        send = torch.cat([piece.reshape(-1) for piece in pieces])
        received = send.new_zeros(self.world_size, *pieces[0].shape)

        def wait(send=send):
            return received

        return wait


def test_seven_buffers_are_the_most_that_exchanges_hold():
    """16 layers of 256 x 256, 4 rows a rank: 16 MiB for each owner, in buffers of 1 MiB. The sums of products
    come on top."""
    num_layers, side, num_rows = 16, 256, 4
    names, part = [f"layer{i}" for i in range(num_layers)], side * side // Peers.world_size
    slices = [
        {f"{name}.weight": (rank * part, (rank + 1) * part) for name in names}
        for rank in range(Peers.world_size)
    ]
    own = [
        Fragment(n, low, high - low, torch.ones(part), torch.ones(part), 1, 0.9, 0.9, 1e-8, True)
        for n, (low, high) in slices[0].items()
    ]
    collectives = Peers(slices)
    owners = OwnerMap({f"{name}.weight": (side, side) for name in names}, own, collectives)

    def exchange():
        watch = Stopwatch(torch.device("cpu"))
        gram = ExactGram(problem(owners, own, num_rows, 1, exchange_bytes=1 << 20), collectives, watch)
        gram.finish_target()
        for name in names:
            gram.add(name, torch.ones(num_rows, 1, side), torch.ones(num_rows, 1, side))
        gram.finish()

    target = 4 * num_layers * part
    assert 6.5 < (peak_bytes(exchange) - target) / 2**20 < 7.5


def test_products_of_tokens_hold_factors_instead_of_gradients():
    """Long samples through narrow layers: factors are the larger; their sizes by hand, alone on one rank,
    nothing held."""
    shapes = shapes_of(tiny_llama(), "tiny")
    changes = {"geometry": "identity", "contraction": "token_token"}
    run = sizes(changes, tokens=100)
    by_rows, by_tokens = backends.ways(shapes, run)
    assert not by_rows and len(by_tokens) == len(shapes.scored())
    own = (4 + 2) * 100
    waiting = 2 * 100 * sum(layer.out_features + layer.in_features for layer in by_tokens)
    widest = 3 * own * max(layer.out_features + layer.in_features for layer in by_tokens)
    assert memory.backend(shapes, run) == 4 * (waiting + widest + 3 * own * own) + 8 * 5**2
    with pytest.raises(ValueError, match="needs a metric that factors"):
        memory.backend(shapes, sizes({"contraction": "token_token"}))
