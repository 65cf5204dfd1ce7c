# B samples, T tokens, O out_features, I in_features
"""Factors from the scoring pass against a loop of batch-of-one autograd passes, in float64.

Both sides are float64 and differ only in the order of their sums, hence 1e-10. Eager attention alone has
1e-6: transformers takes its softmax in float32, whose sum over a padded row comes in another order.
"""

import pytest
import torch
from torch import nn

from pipeline.data.collate import collate
from pipeline.scoring.factors import per_sample_gradient, scored_layers, scoring_pass
from pipeline.scoring.loss import causal_logits, per_sample_loss
from tests.reference import (
    add_lora,
    fill_adapters,
    gradient,
    linear_weights,
    random_samples,
    sample_loss,
    tiny_llama,
)

LENGTHS = [9, 5, 13, 2, 7]
WITHOUT_SUPERVISION = 4


def samples():
    return random_samples(LENGTHS, seed=1, unsupervised=(WITHOUT_SUPERVISION,))


def scored_gradients(model, batch) -> dict[str, torch.Tensor]:
    """(B, O, I) of every scored layer, from one padded forward and backward."""
    found = {}

    def keep(name, activation_BTI, output_grad_BTO):
        assert name not in found
        found[name + ".weight"] = per_sample_gradient(activation_BTI, output_grad_BTO)

    input_ids_BT, labels_BT = collate(batch, pad_token_id=0)
    with scoring_pass(model, scored_layers(model), keep):
        per_sample_loss_in_double(causal_logits(model, input_ids_BT), labels_BT).sum().backward()
    return found


def per_sample_loss_in_double(logits_BTV, labels_BT):
    """pipeline.scoring.loss rounds to float32 on purpose; here the factors are measured, and the loss has
    tests of its own."""
    token_loss = nn.functional.cross_entropy(
        logits_BTV[:, :-1].transpose(1, 2), labels_BT[:, 1:], reduction="none"
    )
    return token_loss.sum(1) / (labels_BT[:, 1:] != -100).sum(1).clamp(min=1)


def model_under_test(**options):
    return tiny_llama(**{"attention": "sdpa", **options})


def assert_equal_loop(model, found, tolerance=1e-10):
    names = linear_weights(model)
    assert sorted(found) == sorted(names)
    for row, sample in enumerate(samples()):
        expected = gradient(model, [(sample, 1.0)])
        for name in names:
            error, norm = (found[name][row] - expected[name]).norm().item(), expected[name].norm().item()
            message = (
                f"{name}, sample {row}: norm {found[name][row].norm():.3e}, expected {norm:.3e}, "
                f"error {error:.3e}"
            )
            assert error <= tolerance * max(norm, 1e-3), message
            assert norm == 0 or row != WITHOUT_SUPERVISION, message
        total = sum(expected[name].norm() for name in names)
        assert (total == 0) == (row == WITHOUT_SUPERVISION), f"sample {row}: norm {total}"


def lora_model(dropout=0.0):
    model = add_lora(model_under_test(), dropout)
    fill_adapters(model)
    return model


def checkpointed_model():
    model = model_under_test()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


MODELS = {
    "full": model_under_test,
    "gradient_checkpointing": checkpointed_model,
    "lora": lora_model,
    "lora_with_dropout": lambda: lora_model(dropout=0.5),
    "attention_dropout": lambda: model_under_test(attention_dropout=0.5),
    "tied_lm_head": lambda: model_under_test(tied=True),
    "eager": lambda: model_under_test(attention="eager"),
}


@pytest.mark.parametrize("name", MODELS)
def test_factors_equal_a_loop_of_batches_of_one(name):
    model = MODELS[name]().train()
    assert_equal_loop(model, scored_gradients(model, samples()), 1e-6 if name == "eager" else 1e-10)


def test_lora_with_gradient_checkpointing_equals_the_loop():
    model = lora_model(dropout=0.5).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_equal_loop(model, scored_gradients(model, samples()))


def test_rows_do_not_depend_on_the_neighbours_in_the_batch():
    model = model_under_test()
    together = scored_gradients(model, samples())
    for row, sample in enumerate(samples()):
        for name, alone in scored_gradients(model, [sample]).items():
            assert torch.allclose(alone[0], together[name][row], rtol=0, atol=1e-12), f"{name}, sample {row}"


def test_averaging_tokens_before_the_outer_product_is_another_gradient():
    """The trap itself: mean activation times summed output_grad has the right shape and the wrong
    direction."""
    model, averaged = model_under_test(), {}

    def average(name, activation_BTI, output_grad_BTO):
        averaged[name + ".weight"] = output_grad_BTO.sum(1).unsqueeze(2) * activation_BTI.mean(1).unsqueeze(1)

    input_ids_BT, labels_BT = collate(samples(), pad_token_id=0)
    with scoring_pass(model, scored_layers(model), average):
        per_sample_loss(causal_logits(model, input_ids_BT), labels_BT).sum().backward()
    expected = gradient(model, [(samples()[0], 1.0)])
    for name, found_BOI in averaged.items():
        assert (found_BOI[0] - expected[name]).norm() > 0.1 * expected[name].norm(), name
    assert_equal_loop(model, scored_gradients(model, samples()))


def test_tied_lm_head_is_not_scored():
    assert "lm_head" in scored_layers(tiny_llama())
    assert "lm_head" not in scored_layers(tiny_llama(tied=True))
    assert len(scored_layers(tiny_llama(tied=True))) == len(scored_layers(tiny_llama())) - 1


def test_frozen_layers_are_not_scored():
    assert all("lora_" in name for name in scored_layers(lora_model()))
    assert len(scored_layers(lora_model())) == 2 * 7 * 2  # A and B of 7 projections in 2 blocks


def num_hooks(model) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


class SideBranch(nn.Module):
    """A linear layer whose input is not made from the embedding: the pass cannot see its gradient."""

    def __init__(self):
        super().__init__()
        self.embedding, self.straight = nn.Embedding(7, 5), nn.Linear(5, 7, bias=False)
        self.aside = nn.Linear(3, 7, bias=False)
        self.register_buffer("constant", torch.ones(3))

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, ids):
        return self.straight(self.embedding(ids)) + self.aside(self.constant)


class TwiceRun(SideBranch):
    def forward(self, ids):
        hidden = self.embedding(ids)
        return self.straight(hidden) + self.straight(2 * hidden) + self.aside(hidden[..., :3])


@pytest.mark.parametrize("model, culprit", [(SideBranch(), "aside"), (TwiceRun(), "straight")])
def test_a_layer_without_exactly_one_delivery_raises_and_is_named(model, culprit):
    layers = scored_layers(model)
    with pytest.raises(RuntimeError, match=f"'{culprit}'"), scoring_pass(model, layers, lambda *_: None):
        model(torch.tensor([[1, 2]])).sum().backward()
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert num_hooks(model) == 0


def test_the_pass_leaves_parameters_gradients_modes_and_hooks_as_they_were():
    model = lora_model(dropout=0.5).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    state = {name: parameter.clone() for name, parameter in model.named_parameters()}
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    hooks = num_hooks(model)
    random_state = torch.get_rng_state()
    scored_gradients(model, samples())
    assert all(torch.equal(parameter, state[name]) for name, parameter in model.named_parameters())
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module.training for module in model.modules())
    assert num_hooks(model) == hooks
    assert torch.equal(torch.get_rng_state(), random_state)


def test_an_error_inside_the_pass_is_not_hidden_and_restores_the_model():
    model = model_under_test().train()
    with pytest.raises(ZeroDivisionError), scoring_pass(model, scored_layers(model), lambda *_: None):
        raise ZeroDivisionError
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    assert num_hooks(model) == 0


def test_per_sample_loss_equals_the_mean_over_supervised_tokens():
    """float32 at the softmax, hence 1e-6."""
    model, batch = model_under_test(), samples()
    input_ids_BT, labels_BT = collate(batch, pad_token_id=0, num_rows=len(batch) + 1)
    found_B = per_sample_loss(causal_logits(model, input_ids_BT), labels_BT)
    expected_B = torch.stack([sample_loss(model, sample) for sample in batch])
    assert torch.allclose(found_B[:-1].double(), expected_B, rtol=1e-6, atol=0)
    assert found_B[WITHOUT_SUPERVISION] == 0 and found_B[-1] == 0
