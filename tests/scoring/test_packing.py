# C candidates, B samples, T tokens
"""Samples in one packed row against the same samples padded, and one sample at a time.

In float64 the sides differ in the order of their sums alone: 1e-10. Llama's norms are taken in float32, which
rounds the same on both sides as long as nothing before them differs.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from pipeline.data.collate import collate, pack
from pipeline.geometry import GEOMETRIES
from pipeline.scoring.exact import ExactGram
from pipeline.scoring.factored import FactoredGram
from pipeline.scoring.factors import leaf_module, per_sample_gradient, scored_layers, scoring_pass
from pipeline.scoring.loss import causal_logits, per_sample_loss, per_sample_loss_in_chunks
from pipeline.scoring.moments import Fragment
from pipeline.scoring.norms import squared_norm
from pipeline.scoring.owners import OwnerMap
from pipeline.scoring.projected import ProjectedGram
from pipeline.scoring.stopwatch import Stopwatch
from tests import selected
from tests.reference import (
    add_lora,
    fill_adapters,
    gradient,
    random_samples,
    relative_gram_error,
    sample_loss,
    tiny_llama,
)
from tests.scoring.engine_cases import expected
from tests.scoring.packing_cases import CASES, llama, small
from tests.scoring.problem import problem

CPU = torch.device("cpu")
UNSUPERVISED = 2
LENGTHS = {
    "awkward": [1, 2, 9, 1, 13, 5],
    "equal": [6, 6, 6],
    "very unequal": [2, 60, 3],
    "one": [7],
    "one token": [1],
    "ones": [1, 1, 1],
}


def lora():
    model = add_lora(llama())
    fill_adapters(model)
    return model.eval()


def checkpointed(model):
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


MODELS: dict[str, Callable] = {
    "llama": llama,
    "llama_lora": lora,
    "llama_checkpointing": lambda: checkpointed(llama()),
    "llama_lora_checkpointing": lambda: checkpointed(lora()),
    "qwen3": lambda: small(
        Qwen3ForCausalLM, Qwen3Config, intermediate_size=50, num_key_value_heads=3, head_dim=8
    ),
    "gpt_neox": lambda: small(GPTNeoXForCausalLM, GPTNeoXConfig, intermediate_size=50),
    "sliding_window": lambda: small(
        MistralForCausalLM, MistralConfig, intermediate_size=50, num_key_value_heads=3, sliding_window=4
    ),
}


def samples(kind: str = "awkward"):
    lengths = LENGTHS[kind]
    return random_samples(
        lengths, seed=1, unsupervised=(UNSUPERVISED,) if len(lengths) > UNSUPERVISED else ()
    )


def to_batch(batch, is_packed: bool):
    return pack(batch, 0) if is_packed else (*collate(batch, 0), None)


def scored(model, batch, is_packed: bool, last_blocks: int = 0, num_chunks: int = 0):
    """Losses (B,), and the factors of every layer with the lengths that belong to them."""
    found, layers = {}, scored_layers(model, last_blocks)
    if num_chunks:
        layers.pop("lm_head")
    input_ids_BT, labels_BT, lengths = to_batch(batch, is_packed)
    keep = lambda name, *factors: found.update({name: (*(factor.detach() for factor in factors), lengths)})
    with scoring_pass(model, layers, keep, leaf_module(model, last_blocks)):
        if num_chunks:
            loss_B = per_sample_loss_in_chunks(model, input_ids_BT, labels_BT, num_chunks, lengths=lengths)
        else:
            loss_B = per_sample_loss(causal_logits(model, input_ids_BT, lengths), labels_BT, lengths)
        loss_B.sum().backward()
    return loss_B.detach(), found


def assert_equal(found: torch.Tensor, wanted: torch.Tensor, what: str, tolerance: float = 1e-10):
    assert found.shape == wanted.shape, f"{what}: {tuple(found.shape)} and {tuple(wanted.shape)}"
    error, norm = (found - wanted).norm().item(), wanted.norm().item()
    assert error <= tolerance * max(norm, 1e-3), (
        f"{what}: norm {found.norm():.3e}, expected {norm:.3e}, error {error:.3e}"
    )


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("name", MODELS)
def test_losses_and_per_sample_gradients_of_a_packed_row_are_those_of_padded_samples(name, lengths):
    model, batch = MODELS[name](), samples(lengths)
    packed_B, packed = scored(model, batch, True)
    padded_B, padded = scored(model, batch, False)
    assert_equal(packed_B, padded_B, "losses")
    assert packed.keys() == padded.keys() and packed
    for layer in padded:
        assert_equal(per_sample_gradient(*packed[layer]), per_sample_gradient(*padded[layer]), layer)


@pytest.mark.parametrize("name", ["llama", "llama_lora", "gpt_neox"])
def test_a_packed_row_equals_a_loop_over_its_samples(name):
    model, batch = MODELS[name](), samples()
    packed_B, packed = scored(model, batch, True)
    for row, sample in enumerate(batch):
        assert_equal(packed_B[row], sample_loss(model, sample).detach(), f"loss of sample {row}")
        wanted = gradient(model, [(sample, 1.0)])
        for layer, factors in packed.items():
            assert_equal(
                per_sample_gradient(*factors)[row], wanted[layer + ".weight"], f"{layer}, sample {row}"
            )


def test_learned_positions_begin_anew_in_a_packed_row():
    model = small(GPT2LMHeadModel, GPT2Config)
    losses_B = [
        per_sample_loss(causal_logits(model, ids, lengths), labels, lengths)
        for ids, labels, lengths in (to_batch(samples(), is_packed) for is_packed in (True, False))
    ]
    assert_equal(*losses_B, "losses")


@pytest.mark.parametrize("num_chunks", [1, 3, 40])
def test_logits_in_chunks_change_nothing_of_a_packed_row(num_chunks):
    model, batch = llama(), samples()
    chunked_B, chunked = scored(model, batch, True, num_chunks=num_chunks)
    plain_B, plain = scored(model, batch, False)
    assert_equal(chunked_B, plain_B, "losses")
    for layer, factors in chunked.items():
        assert_equal(per_sample_gradient(*factors), per_sample_gradient(*plain[layer]), layer)


def test_the_last_blocks_alone_of_a_packed_row():
    model, batch = llama(), samples()
    _, last = scored(model, batch, True, last_blocks=1)
    _, full = scored(model, batch, False)
    assert len(last) == 8  # with lm_head
    for layer, factors in last.items():
        assert_equal(per_sample_gradient(*factors), per_sample_gradient(*full[layer]), layer)


def test_the_gradient_of_the_weighted_loss_is_the_same_packed():
    """Of all parameters, embedding and norms included: what the weighted step hands to the engine."""
    model, batch = llama(tied=True).train(), samples()
    weights_B = torch.rand(len(batch), dtype=torch.float64)
    found = []
    for is_packed in (True, False):
        input_ids_BT, labels_BT, lengths = to_batch(batch, is_packed)
        loss_B = per_sample_loss(causal_logits(model, input_ids_BT, lengths), labels_BT, lengths)
        found.append(torch.autograd.grad((loss_B * weights_B).sum(), list(model.parameters())))
    for (name, _), packed, padded in zip(model.named_parameters(), *found):
        assert_equal(packed, padded, name, 1e-7)  # norms and their gradients are float32


def test_a_packed_row_counts_its_tokens_and_never_asks_for_a_first_one():
    batch = samples()
    input_ids_1N, labels_1N, lengths = pack(batch, 0)
    assert lengths == LENGTHS["awkward"] and input_ids_1N.shape == labels_1N.shape == (1, sum(lengths))
    starts = np.cumsum([0, *lengths[:-1]])
    assert (labels_1N[0, starts] == -100).all()
    assert (labels_1N != -100).sum() == sum(sample.num_supervised for sample in batch)


def test_a_packed_row_of_no_sample_is_one_blank_one():
    input_ids_1N, labels_1N, lengths = pack([], pad_token_id=9)
    assert (input_ids_1N.tolist(), labels_1N.tolist(), lengths) == ([[9, 9]], [[-100, -100]], [2])


# -- the Gram backends --


class Alone:
    world_size, rank, device = 1, 0, CPU
    gather = staticmethod(lambda tensor: tensor.unsqueeze(0))
    gather_objects = staticmethod(lambda value: [value])
    rows_to_owners = staticmethod(lambda pieces: lambda: pieces[0].unsqueeze(0))
    sum = staticmethod(lambda tensor: tensor)


TINY = 700  # bytes: every weight row travels alone
# name: (backend, geometry, bytes of an exchange, options, tolerance). Features are float32, and differ in the
# order of sums.
BACKENDS = {
    "materialise": (ExactGram, "update", 1 << 26, {"contraction": "materialise"}, 1e-10),
    "row_chunks": (ExactGram, "update", TINY, {"contraction": "row_chunks"}, 1e-10),
    "token_token": (ExactGram, "identity", 1 << 26, {"contraction": "token_token"}, 1e-10),
    "projected": (ProjectedGram, "update", 1 << 26, {"projection_size": 4, "seed": "0"}, 1e-4),
    "projected_rows": (ProjectedGram, "curvature", TINY, {"projection_size": 4, "seed": "0"}, 1e-4),
    "factored": (FactoredGram, "update", 1 << 26, {"projection_size": 4, "seed": "0"}, 1e-4),
}


def gram_of(name: str, model, micro_batches: list[list], targets: list, is_packed: bool) -> torch.Tensor:
    make, geometry, exchange_bytes, options, _ = BACKENDS[name]
    generator = torch.Generator().manual_seed(0)
    shapes = {layer + ".weight": tuple(linear.weight.shape) for layer, linear in scored_layers(model).items()}
    own = [
        Fragment(
            weight,
            0,
            o * i,
            torch.zeros(o * i),
            1e-4 * torch.rand(o * i, generator=generator),
            3,
            0.9,
            0.95,
            1e-3,
            True,
        )
        for weight, (o, i) in shapes.items()
    ]
    num_rows = sum(map(len, micro_batches))
    options = {"geometry": GEOMETRIES[geometry], "exchange_bytes": exchange_bytes, **options}
    owners, longest = OwnerMap(shapes, own, Alone), max(LENGTHS["awkward"])
    gram = make(problem(owners, own, num_rows, longest, 8, **options), Alone, Stopwatch(CPU))
    for layer, (*factors, _) in scored(model, targets, is_packed)[1].items():
        gram.add_target(layer, *factors)
    gram.finish_target()
    for batch in micro_batches:
        for layer, factors in scored(model, batch, is_packed)[1].items():
            gram.add(layer, *factors)
    return gram.finish()


@pytest.mark.parametrize("make", [llama, lora])
@pytest.mark.parametrize("name", BACKENDS)
def test_the_gram_of_packed_rows_is_that_of_padded_samples(name, make):
    """In micro-batches whose longest samples differ, and for token_token the tokens of a rank's longest."""
    model, (first, *rest) = make(), samples()
    micro_batches, targets = [[first, rest[0], rest[1]], rest[2:]], random_samples([8, 1, 3], seed=2)
    packed, padded = (gram_of(name, model, micro_batches, targets, is_packed) for is_packed in (True, False))
    error = relative_gram_error(packed, padded).max().item()
    assert error <= BACKENDS[name][-1], f"worst difference {error:.1e} of |phi_i| |phi_j|"
    assert not packed[UNSUPERVISED].any() and (packed.diagonal() > 0).sum() >= 4


def test_norms_of_packed_samples_are_those_of_padded_ones():
    model, batch = llama(), samples()
    packed, padded = (scored(model, batch, is_packed)[1] for is_packed in (True, False))
    for layer in padded:
        for bound in (TINY, 1 << 26):
            # in float32
            assert_equal(
                squared_norm(*packed[layer], bound), squared_norm(*padded[layer], bound), layer, 1e-6
            )


# -- real engines --


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tmp_path_factory.mktemp("packing"))


@pytest.fixture(scope="module")
def engines(request, run_ranks, model_folder, folder):
    """What two ranks saw, by case."""
    cases = selected.cases(request, "case", CASES)
    arguments = dict(cases=cases, model_folder=model_folder, folder=folder)
    ranks = run_ranks("tests.scoring.engine_cases:run_engines", 2, **arguments)
    return dict(zip(map(str, cases), zip(*ranks)))


@pytest.fixture(scope="module")
def ranks(run_ranks, model_folder, folder):
    """What else they saw, rank by rank."""
    return run_ranks("tests.scoring.packing_cases:run", 2, model_folder=model_folder, folder=folder)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_packing_on_two_ranks_gives_the_gram_losses_and_updates_of_the_dense_reference(
    engines, model_folder, case
):
    """Tolerances of test_gram.py, where they have their reasons."""
    reference, (found, on_other) = expected(case, model_folder), engines[str(case)]
    for variant, scores in found["grams"].items():
        error = relative_gram_error(
            torch.from_numpy(scores["gram"]), torch.from_numpy(reference.grams[variant.gram])
        ).max()
        tolerance = 2**-7 if variant.backend == "projected" else 5e-4
        assert error <= tolerance, f"{variant}: {error:.1e} of |phi_i| |phi_j|"
        assert np.abs(scores["loss_C"] - np.array(reference.loss_C)).max() < 1e-5, variant
        assert abs(scores["target_loss"] - reference.target_loss) < 1e-5, variant
        assert np.array_equal(scores["gram"], on_other["grams"][variant]["gram"]), variant
    assert np.abs(np.array(found["losses"]) - np.array(reference.losses)).max() < 1e-5
    for name, wanted in reference.parameters.items():
        error = (found["parameters"][name].double() - wanted).abs().max().item()
        assert error < 3e-5, f"{name}: error {error:.3e}"


def test_held_out_loss_is_the_same_packing_on_two_ranks_where_one_has_a_blank_row(ranks):
    for packed, padded in ranks[0]["held_out"]:
        assert abs(packed - padded) < 1e-6 and padded > 1


def test_methods_without_a_gram_see_the_same_packing(ranks):
    for packed, padded in ranks[0]["signals"]:
        assert packed.keys() == padded.keys() and packed
        for name in packed:
            assert np.allclose(packed[name], padded[name], rtol=1e-5), name


def test_the_self_check_passes_models_that_packing_leaves_apart_and_refuses_others(ranks):
    """By measurement: no list of architectures."""
    for rank in ranks:
        for name, lines in rank["self_checks"].items():
            checks = {line.check: line for line in lines}
            line = checks["packed samples do not see each other"]
            assert line.passed == (name in ("llama", "sliding_window")), f"{name}: {line.found}"
            if line.passed:
                assert len(lines) > 1 and all(line.passed for line in lines), [
                    line for line in lines if not line.passed
                ]
            else:
                assert "model.packing" in line.remedy and len(lines) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")
def test_packing_on_a_gpu_by_the_varlen_kernel_equals_padding():
    """bf16: 8 bits, as padded against alone (pipeline/training/self_check.py)."""
    from pipeline.training.attention import FLASH_PACKAGES, choose

    device = torch.device("cuda")
    model = tiny_llama(hidden_size=64, num_attention_heads=1, num_key_value_heads=1).to(
        device, torch.bfloat16
    )
    chosen = choose("auto", device, torch.bfloat16, model.config)
    if chosen.implementation not in FLASH_PACKAGES:
        pytest.skip(f"no flash-attn package runs here: {chosen.slower}")
    model.set_attn_implementation(chosen.implementation)
    found = []
    for is_packed in (True, False):
        *batch, lengths = to_batch(samples(), is_packed)
        input_ids_BT, labels_BT = (tensor.to(device) for tensor in batch)
        factors = {}
        keep = lambda name, *pair, factors=factors, lengths=lengths: factors.update(
            {name: per_sample_gradient(*pair, lengths)}
        )
        with scoring_pass(model, scored_layers(model), keep):
            loss_B = per_sample_loss(causal_logits(model, input_ids_BT, lengths), labels_BT, lengths)
            loss_B.sum().backward()
        found.append((loss_B.detach(), factors))
    (packed_B, packed), (padded_B, padded) = found
    assert_equal(packed_B, padded_B, "losses", 0.02)
    for layer in padded:
        assert_equal(packed[layer].float(), padded[layer].float(), layer, 0.3)
