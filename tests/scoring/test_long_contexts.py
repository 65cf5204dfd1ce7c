# B samples, T tokens, V vocabulary
"""Long contexts: logits in chunks of tokens, factors streamed layer by layer; memory counted by live
tensors."""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.data.collate import collate
from pipeline.scoring.exact import ExactGram
from pipeline.scoring.factors import leaf_module, scored_layers, scoring_pass
from pipeline.scoring.loss import causal_logits, has_plain_logits, per_sample_loss, per_sample_loss_in_chunks
from pipeline.scoring.moments import Fragment
from pipeline.scoring.owners import OwnerMap
from pipeline.scoring.stopwatch import Stopwatch
from tests.reference import VOCABULARY, random_samples, tiny_llama
from tests.scoring.problem import problem

CPU = torch.device("cpu")


def batch(lengths=(9, 14, 5), unsupervised=()):
    return collate(random_samples(list(lengths), seed=3, unsupervised=unsupervised), 0)


def factors_and_loss(model, loss_of, last_blocks=0):
    found, layers = {}, scored_layers(model, last_blocks)
    layers.pop("lm_head", None)
    with scoring_pass(
        model, layers, lambda name, *pair: found.update({name: pair}), leaf_module(model, last_blocks)
    ):
        loss_B = loss_of()
        loss_B.sum().backward()
    return found, loss_B.detach()


@pytest.mark.parametrize("num_chunks", [1, 2, 3, 7, 40])
@pytest.mark.parametrize("tied", [False, True])
def test_chunks_change_neither_losses_nor_factors(tied, num_chunks):
    """More chunks than supervised tokens leave some empty."""
    model = tiny_llama(tied=tied)
    input_ids_BT, labels_BT = batch(unsupervised=(2,))
    plain, loss_B = factors_and_loss(
        model, lambda: per_sample_loss(causal_logits(model, input_ids_BT), labels_BT)
    )
    chunked, chunked_B = factors_and_loss(
        model, lambda: per_sample_loss_in_chunks(model, input_ids_BT, labels_BT, num_chunks)
    )
    assert (loss_B - chunked_B).abs().max() < 1e-12 and loss_B[2] == chunked_B[2] == 0
    assert plain.keys() == chunked.keys()
    for name in plain:
        for whole, part in zip(plain[name], chunked[name]):
            assert (whole - part).abs().max() < 1e-12, name


def test_losses_in_chunks_need_no_gradient():
    model, (input_ids_BT, labels_BT) = tiny_llama(), batch(unsupervised=(2,))
    with torch.no_grad():
        plain_B = per_sample_loss(causal_logits(model, input_ids_BT), labels_BT)
        chunked_B = per_sample_loss_in_chunks(model, input_ids_BT, labels_BT, 3)
    assert (plain_B - chunked_B).abs().max() < 1e-12 and not chunked_B.requires_grad


class LargestLogits(TorchDispatchMode):
    """Most rows of a tensor that has the vocabulary in its last dimension and memory of its own."""

    rows = 0

    def __torch_dispatch__(self, function, types, arguments=(), kwargs=None):
        output = function(*arguments, **(kwargs or {}))
        is_view = any(returned.alias_info for returned in function._schema.returns)
        for tensor in () if is_view else output if isinstance(output, (tuple, list)) else (output,):
            if isinstance(tensor, torch.Tensor) and tensor.dim() > 1 and tensor.shape[-1] == VOCABULARY:
                self.rows = max(self.rows, tensor.numel() // VOCABULARY)
        return output


def test_logits_of_a_chunk_are_all_that_exist_at_a_time():
    model, (input_ids_BT, labels_BT) = tiny_llama(), batch((60, 60, 60))
    supervised = (labels_BT[:, 1:] != -100).sum().item()
    with LargestLogits() as largest:
        factors_and_loss(model, lambda: per_sample_loss_in_chunks(model, input_ids_BT, labels_BT, 2))
    assert largest.rows == -(-supervised // 2)
    with LargestLogits() as largest:
        factors_and_loss(model, lambda: per_sample_loss(causal_logits(model, input_ids_BT), labels_BT))
    assert largest.rows == input_ids_BT.numel(), "the check sees plain logits"


def test_a_model_that_changes_its_logits_afterwards_is_recognised():
    model = tiny_llama()
    assert has_plain_logits(model, CPU)
    original = model.forward
    model.forward = lambda *a, **k: (lambda out: type(out)(logits=30 * torch.tanh(out.logits / 30)))(
        original(*a, **k)
    )
    assert not has_plain_logits(model, CPU)


# -- depth --


@pytest.mark.parametrize("checkpointing", [False, True])
def test_factors_of_the_last_blocks_are_those_of_a_full_pass(checkpointing):
    model, (input_ids_BT, labels_BT) = tiny_llama(num_hidden_layers=4), batch()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    loss = lambda: per_sample_loss(causal_logits(model, input_ids_BT), labels_BT)
    full, full_B = factors_and_loss(model, loss)
    last, last_B = factors_and_loss(model, loss, last_blocks=1)
    assert set(last) == {name for name in full if ".layers.3." in name} and len(last) == 7
    assert torch.equal(full_B, last_B)
    for name, pair in last.items():
        assert all((a - b).abs().max() < 1e-12 for a, b in zip(pair, full[name])), name


def test_all_blocks_are_all_and_more_are_refused():
    model = tiny_llama(num_hidden_layers=3)
    assert scored_layers(model, 3).keys() == scored_layers(model).keys()
    assert leaf_module(model, 3) is model.get_input_embeddings()
    for find in (scored_layers, leaf_module):
        with pytest.raises(ValueError, match=r"selection\.last_blocks = 4, and the model has 3 blocks"):
            find(model, 4)


def test_a_model_without_a_list_of_blocks_is_refused_by_name():
    model = tiny_llama()
    model.config.num_hidden_layers = 5
    with pytest.raises(ValueError, match=r"no list of 5 blocks.*selection\.last_blocks"):
        scored_layers(model, 1)


# -- streaming --


class Alone:
    world_size, rank, device = 1, 0, CPU
    gather_objects = staticmethod(lambda value: [value])
    rows_to_owners = staticmethod(lambda pieces: lambda: pieces[0].unsqueeze(0))
    sum = staticmethod(lambda tensor: tensor)


class LiveBytes(TorchDispatchMode):
    """Bytes of all storages that operations made and nobody has let go."""

    def __init__(self):
        super().__init__()
        self.live, self.peak, self._seen = 0, 0, weakref.WeakSet()

    def __torch_dispatch__(self, function, types, arguments=(), kwargs=None):
        output = function(*arguments, **(kwargs or {}))
        for tensor in output if isinstance(output, (tuple, list)) else (output,):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage()) not in self._seen:
                self._seen.add(storage)
                self.live += storage.nbytes()
                weakref.finalize(storage, self._free, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return output

    def _free(self, num_bytes):
        self.live -= num_bytes


def peak_bytes(action) -> int:
    with LiveBytes() as counter:
        action()
    return counter.peak


def test_the_peak_of_live_tensors_is_that_of_plain_training_and_one_layers_work():
    """All per-sample gradients together would be twelve times the parameters."""
    model, samples = (
        tiny_llama(hidden_size=96, intermediate_size=200, num_hidden_layers=4, tied=True).float(),
        12,
    )
    input_ids_BT, labels_BT = batch((24,) * samples)
    shapes = {name + ".weight": tuple(layer.weight.shape) for name, layer in scored_layers(model).items()}
    own = [
        Fragment(n, 0, o * i, torch.zeros(o * i), torch.ones(o * i), 1, 0.9, 0.99, 1e-8, True)
        for n, (o, i) in shapes.items()
    ]
    owners = OwnerMap(shapes, own, Alone)
    loss = lambda: per_sample_loss(causal_logits(model, input_ids_BT), labels_BT)
    bound = 100_000

    def plain():
        """The second micro-step: gradients are there from the start, as the target's is in scoring."""
        loss().sum().backward()
        loss().sum().backward()

    def scoring():
        gram = ExactGram(problem(owners, own, samples, 24, exchange_bytes=bound), Alone, Stopwatch(CPU))
        gram.finish_target()
        with scoring_pass(model, scored_layers(model), gram.add):
            loss().sum().backward()
        gram.finish()

    # bytes: the target's gradient, as .grad in plain training
    parameters = 4 * sum(o * i for o, i in shapes.values())
    plain_bytes, scoring_bytes = peak_bytes(plain), peak_bytes(scoring)
    assert plain_bytes > parameters, "the tracker sees the gradients of plain training"
    assert scoring_bytes <= plain_bytes + 4 * bound, (
        f"{scoring_bytes:,} bytes of live tensors, plain training {plain_bytes:,}"
    )
    assert plain_bytes + 4 * bound < samples * parameters, (
        "all per-sample gradients at once would be found out"
    )
