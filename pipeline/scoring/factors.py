# B samples, T tokens, I in_features, O out_features
"""Per-sample gradients as factors, from a backward pass that the DeepSpeed engine does not notice.

For a linear layer the gradient of sample i is G_i = output_grad_i' activation_i. The pass below delivers the
two factors of every scored layer, layer by layer, while activation gradients flow back:

    embedding output --(made a leaf)--> layer --> ... --> loss        parameters: requires_grad off; eval mode
                                          |
                                  tap: keeps the activation, meets the output_grad, hands both on

Where only the last blocks are scored, the leaf is the output of the block before them: earlier ones run
forward only and keep no activation, and the backward ends there.

No parameter takes part in autograd, so no parameter gradient is computed, no ``.grad`` is touched, no ZeRO
reduction hook fires and no micro-step counter moves.

In float16 most of a small output_grad would round to zero. The caller then multiplies the loss by
``loss_scale``, and the tap divides it out of the factors, in float32: nothing after it knows of a scale.

Under ``torch.autocast`` a layer casts its input; the tap hands on the activation that was multiplied.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Optional

import torch
from torch import nn

from pipeline.scoring.loss import LanguageModel

OnFactors = Callable[[str, torch.Tensor, torch.Tensor], None]
"""A function of (layer name, activation_BTI, output_grad_BTO)."""


def scored_layers(module: nn.Module, last_blocks: int = 0) -> dict[str, nn.Linear]:
    """Linear layers, by name, whose weight is trained and theirs alone; of the last blocks, of all for 0.

    A weight tied to the embedding has a second gradient that no linear layer sees: its layer is not scored.
    """
    skipped = tuple(f"{name}." for name in _before_last(module, last_blocks))
    uses: dict[int, int] = {}
    for child in module.modules():
        for parameter in child.parameters(recurse=False):
            uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    return {
        name: child
        for name, child in module.named_modules()
        if isinstance(child, nn.Linear)
        and child.weight.requires_grad
        and uses[id(child.weight)] == 1
        and not name.startswith(skipped or ("\0",))
    }


def leaf_module(module: LanguageModel, last_blocks: int = 0) -> nn.Module:
    """The module whose output becomes the leaf: the embedding, or the block before the last ones."""
    earlier = list(_before_last(module, last_blocks).values())
    return earlier[-1] if earlier else module.get_input_embeddings()


def _before_last(module: nn.Module, last_blocks: int) -> dict[str, nn.Module]:
    """Blocks that are not scored, none for 0. Raises ValueError where the model has too few."""
    if last_blocks == 0:
        return {}
    known = blocks(module)
    if last_blocks > len(known):
        raise ValueError(
            f"selection.last_blocks = {last_blocks}, and the model has {len(known)} blocks: 0 scores all"
        )
    return dict(list(known.items())[:-last_blocks])


def blocks(module: LanguageModel) -> dict[str, nn.Module]:
    """The transformer blocks by name, in order.

    Raises ValueError where no list of modules is as long as the model's config says.
    """
    count = getattr(module.config.get_text_config(), "num_hidden_layers", None)
    for name, child in module.named_modules():
        if isinstance(child, nn.ModuleList) and len(child) == count:
            return {f"{name}.{i}": block for i, block in enumerate(child)}
    raise ValueError(
        f"{type(module).__name__} has no list of {count} blocks, so selection.last_blocks cannot be counted: "
        "set it to 0"
    )


class _Tap(torch.autograd.Function):
    """Identity on a layer's output. ``save_for_backward`` rather than a closure, so that activation
    checkpointing recomputes the activation instead of keeping it."""

    @staticmethod
    def forward(ctx, output_BTO, activation_BTI, on_factors, name, loss_scale):
        ctx.save_for_backward(activation_BTI.to(output_BTO.dtype))
        ctx.on_factors, ctx.name, ctx.loss_scale = on_factors, name, loss_scale
        return output_BTO.view_as(output_BTO)

    @staticmethod
    def backward(ctx, output_grad_BTO):
        (activation_BTI,) = ctx.saved_tensors
        if output_grad_BTO.dtype == torch.float16:
            ctx.on_factors(ctx.name, activation_BTI.float(), output_grad_BTO.float() / ctx.loss_scale)
        else:
            ctx.on_factors(ctx.name, activation_BTI, output_grad_BTO)
        return output_grad_BTO, None, None, None, None


@contextmanager
def scoring_pass(
    module: LanguageModel,
    layers: dict[str, nn.Linear],
    on_factors: OnFactors,
    leaf: Optional[nn.Module] = None,
    loss_scale: float = 1.0,
) -> Iterator[None]:
    """Call ``on_factors`` once per layer while a forward and ``loss.backward()`` run inside.

    Args:
        module: the model that runs.
        layers: the scored ones, by name.
        on_factors: gets the name and the two factors of a layer.
        leaf: the module whose output ends the backward; by default the embedding.
        loss_scale: the caller's factor of a float16 loss; other dtypes need none.
    Raises:
        RuntimeError: a layer delivered nothing or more than once, since its input does not come from the
            embedding, or since it runs twice in a forward.
    """
    deliveries = dict.fromkeys(layers, 0)

    def deliver(name, activation_BTI, output_grad_BTO):
        if activation_BTI.dim() != 3:
            raise RuntimeError(
                f"layer '{name}' sees an input of shape {tuple(activation_BTI.shape)} instead of (samples, "
                "tokens, features), so its gradient cannot be told apart by sample: freeze it or leave it "
                "out of model.lora_targets"
            )
        deliveries[name] += 1
        on_factors(name, activation_BTI, output_grad_BTO)

    def tap(name):
        def hook(_, inputs, output_BTO):
            return (
                _Tap.apply(output_BTO, inputs[0], deliver, name, loss_scale)
                if output_BTO.requires_grad
                else None
            )

        return hook

    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    was_training = {child: child.training for child in module.modules()}
    handles = [layer.register_forward_hook(tap(name)) for name, layer in layers.items()]
    handles.append((leaf or module.get_input_embeddings()).register_forward_hook(_make_leaf))
    try:
        for child in was_training:
            # Dropout off; but a layer that checkpoints does so only where it believes to be training.
            child.training = was_training[child] and getattr(child, "gradient_checkpointing", False)
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        for child, training in was_training.items():
            child.training = training
        for handle in handles:
            handle.remove()
    wrong = {name: count for name, count in deliveries.items() if count != 1}
    if wrong:
        name, count = next(iter(wrong.items()))
        raise RuntimeError(
            f"{len(wrong)} of {len(layers)} scored layers did not deliver their factors exactly once; "
            f"'{name}' delivered {count} times. Its input does not come from the embedding output, or it "
            "runs several times in one forward: freeze it or leave it out of model.lora_targets"
        )


def _make_leaf(_, __, output):
    """The output as a leaf. A block gives its hidden states alone or first in a tuple."""
    if isinstance(output, tuple):
        return (output[0].detach().requires_grad_(), *output[1:])
    return output.detach().requires_grad_()


def factor_bytes(layers: dict[str, nn.Linear]) -> int:
    """Size of an element of a factor: that of the weights' dtype, and of float32 for float16."""
    dtype = next(iter(layers.values())).weight.dtype
    return 4 if dtype == torch.float16 else dtype.itemsize


def per_sample_gradient(
    activation_BTI: torch.Tensor,
    output_grad_BTO: torch.Tensor,
    lengths: Optional[list[int]] = None,
    out: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    """G_i = sum_t output_grad_it activation_it', (B, O, I), written to ``out`` if given.

    Tokens meet in the outer product, never in a mean before it. ``lengths`` are the tokens of each of B
    samples in a packed row (1, T, .); None where a row is a sample.
    """
    if out is None:
        size = num_samples(activation_BTI, lengths)
        gradient_BOI = activation_BTI.new_empty(size, output_grad_BTO.shape[2], activation_BTI.shape[2])
    else:
        gradient_BOI = out
    if lengths is None:
        return torch.bmm(output_grad_BTO.transpose(1, 2), activation_BTI, out=gradient_BOI)
    # A product for each sample: on CPU torch's grouped_mm takes as long and knows no float64.
    samples = zip(output_grad_BTO[0].split(lengths), activation_BTI[0].split(lengths))
    for gradient_OI, (output_grad_tO, activation_tI) in zip(gradient_BOI, samples):
        torch.mm(output_grad_tO.T, activation_tI, out=gradient_OI)
    return gradient_BOI


def num_samples(activation_BTI: torch.Tensor, lengths: Optional[list[int]]) -> int:
    """Number of samples (B) in a batch or in a packed row."""
    return len(activation_BTI) if lengths is None else len(lengths)
