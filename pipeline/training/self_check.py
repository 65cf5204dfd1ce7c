# B samples, T tokens, I in_features, O out_features
"""Checks before the first step, always on: the assumptions of selection on the real model, data and cluster.

The reference gradient does not use the code it checks. Each scored layer gets a small random perturbation E
of its weight, y = x (W + E)', and autograd differentiates the loss of a single sample with respect to E. That
works at every ZeRO stage, since E belongs to no engine; and E is not zero because a fresh lora_B is, which
would make every gradient of lora_A vanish.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch
import torch.nn.functional as F
from deepspeed.accelerator import get_accelerator

from pipeline.data.collate import collate, pack
from pipeline.data.sample import Sample
from pipeline.hook import SelectionHook
from pipeline.ranks.narrator import Line
from pipeline.scoring.backends import BACKENDS
from pipeline.scoring.contraction import summary
from pipeline.scoring.engines import Engine
from pipeline.scoring.exact import ExactGram, held_bytes
from pipeline.scoring.factors import factor_bytes, per_sample_gradient, scoring_pass
from pipeline.scoring.loss import causal_logits, evaluating, per_sample_loss
from pipeline.scoring.moments import own_part, release_gathered, whole_numel
from pipeline.scoring.stopwatch import Stopwatch
from pipeline.step.look import Moments
from pipeline.step.retries import OVERFLOW_STEP

REFERENCE_ELEMENTS = 100_000_000  # gradient elements of one reference pass: bounds memory on large models
TOLERANCE = {torch.float32: 1e-3}  # relative: float32 sums in another order
# 30 layers of bf16 differ by 5e-2 between batches of one and two; a wrong gradient differs by 1
TOLERANCE_16_BIT = 0.3
LOSS_TOLERANCE = {torch.float32: 1e-4}  # relative
# SmolLM2 in bf16: rounding makes 3e-4, a sample that sees its own copy before it 0.87
LOSS_TOLERANCE_16_BIT = 0.02


def run(hook: SelectionHook, candidates: list[Sample], selects: bool = True) -> list[Line]:
    """All checks that need no Adam state, in the order in which they are made. Every rank calls it.

    Args:
        hook: as attached, before the first step.
        candidates: this rank's, two at least; two of them are measured.
        selects: False leaves out the selection, for a hook that is used to score alone.

    Returns:
        Lines whose ``found`` and ``passed`` are about all ranks. Parameters, gradients and random state are
        restored.
    """
    by_length = sorted(candidates, key=lambda sample: len(sample.input_ids))
    # Two of unequal length, so that one is padded, and not the longest: the reference takes a pass for each,
    # and for each group of layers.
    samples, lines = [by_length[0], by_length[len(by_length) // 2]], []
    before = _fingerprint(hook.engine, hook.collectives.rank)
    if hook.is_packed:
        lines.append(_agree(hook, _packing(hook, *samples)))
        if not lines[-1].passed:  # the others pack too
            return lines
    if hook.method.takes_backward:
        lines.append(_scored_share(hook))
        lines.append(_factors(hook, samples))
    if hook.method.needs_target:
        if BACKENDS[hook.settings.backend] is ExactGram:
            lines.append(_contraction(hook, len(candidates), len(by_length[-1].input_ids)))
            lines.append(_memory(hook, len(candidates), len(by_length[-1].input_ids)))
        lines.append(_addresses(hook))
    if selects:
        lines.append(_same_selection(hook, candidates))
    if hook.method.looks_at_candidates:
        lines.append(_untouched(hook, before))
    return [_agree(hook, line) for line in lines]


def check_state(hook: SelectionHook) -> Line:
    """A check after the first update: every scored parameter has its Adam state."""
    own = hook.scorer.fragments().values()
    found = sum(f.numel for f in own if f.exp_avg_sq is not None and f.step > 0)
    steps = {f.step for f in own if f.numel}
    total = sum(out_features * in_features for out_features, in_features in hook.owners.shapes.values())
    found = int(hook.collectives.sum(torch.tensor(found, device=hook.engine.device)).item())
    line = Line(
        "Adam state after the first update",
        found == total,
        f"{found:,} of {total:,} scored elements, step {sorted(steps)}",
        "the optimizer must be AdamW, FusedAdam or DeepSpeedCPUAdam; or set selection.geometry to identity",
    )
    return _agree(hook, line)


def _agree(hook: SelectionHook, line: Line) -> Line:
    failed = hook.collectives.gather_objects(None if line.passed else line.found)
    ranks = [rank for rank, found in enumerate(failed) if found is not None]
    if not ranks:
        return line
    return Line(line.check, False, f"on rank {', '.join(map(str, ranks))}: {failed[ranks[0]]}", line.remedy)


def _scored_share(hook: SelectionHook) -> Line:
    trained = {n: p for n, p in hook.engine.module.named_parameters() if p.requires_grad}
    numel = {name: whole_numel(parameter) for name, parameter in trained.items()}
    scored = sum(numel[name] for name in hook.owners.shapes)
    left_out: dict[str, int] = {}
    for name in trained:
        if name not in hook.owners.shapes:
            kind = ".".join(part for part in name.split(".") if not part.isdigit())
            left_out[kind] = left_out.get(kind, 0) + numel[name]
    largest = sorted(left_out.items(), key=lambda item: -item[1])[:3]
    named = ", ".join(f"{name} {count / sum(numel.values()):.1%}" for name, count in largest)
    found = (
        f"{scored / sum(numel.values()):.1%} of {sum(numel.values()):,} trained parameters, in "
        f"{len(hook.layers)} linear layers"
    )
    return Line(
        "scored share of trained parameters", scored > 0, found + (f"; left out: {named}" if named else "")
    )


def _packing(hook: SelectionHook, short: Sample, long: Sample) -> Line:
    """A check of the loss of a sample at both ends of a packed row, against its loss alone.

    The second copy is where it goes wrong: it would see the first and repeat it, in attention as in the state
    of a recurrent layer, and positions that do not begin anew would be others than the first one's.
    """
    check, worst, found = "packed samples do not see each other", 0.0, []
    remedy = "set model.packing to false: this model must not see samples in one row"
    allowed = LOSS_TOLERANCE.get(next(hook.engine.module.parameters()).dtype, LOSS_TOLERANCE_16_BIT)
    supervised = Sample(long.input_ids, long.input_ids)
    for module in (hook.engine.module, hook.reference_model):
        if module is None:
            continue
        try:
            first, _, last = _losses(hook, module, [supervised, short, supervised])
            (alone,) = _losses(hook, module, [supervised])
        except (TypeError, ValueError, NotImplementedError, RuntimeError) as error:
            return Line(
                check,
                False,
                f"{type(module).__name__} takes no packed row: {' '.join(str(error).split())[:200]}",
                remedy,
            )
        difference = max(abs(first - alone), abs(last - alone)) / max(abs(alone), 1e-30)
        worst = difference if not difference <= worst else worst  # also catches NaN
        found.append(f"loss of a sample alone {alone:.5f}, first in a row {first:.5f}, last in it {last:.5f}")
    return Line(
        check,
        worst <= allowed,
        f"{'; '.join(found)}; relative difference {worst:.1e}, allowed {allowed:.0e}",
        remedy,
    )


def _losses(hook: SelectionHook, module: torch.nn.Module, samples: list[Sample]) -> list[float]:
    """Losses of the samples in one packed row."""
    input_ids_1T, labels_1T, lengths = pack(samples, hook.pad_token_id, hook.engine.device)
    with evaluating(module):
        losses_B = per_sample_loss(causal_logits(module, input_ids_1T, lengths), labels_1T, lengths)
    release_gathered(hook.engine)
    return losses_B.tolist()


def _factors(hook: SelectionHook, samples: list[Sample]) -> Line:
    """A check of several samples scored together, padded or packed, against autograd on each alone."""
    worst, worst_layer = 0.0, ""
    compared, num_zero = 0, 0
    dtypes = {next(iter(hook.layers.values())).weight.dtype}
    for group in _groups(hook):
        perturbations = _perturbations(hook, group)
        scored, references = _both(hook, perturbations, samples)
        # Under autocast factors have another dtype than the weights.
        dtypes |= {gradient.dtype for gradient in scored.values()}
        for row, reference in enumerate(references):
            for name, reference_OI in reference.items():
                norm = reference_OI.float().norm().item()
                error = (scored[name][row].float() - reference_OI.float()).norm().item() / max(norm, 1e-30)
                compared, num_zero = compared + 1, num_zero + (norm == 0)
                if not error <= worst:  # also catches NaN
                    worst, worst_layer = error, name
    tolerance = max(TOLERANCE.get(dtype, TOLERANCE_16_BIT) for dtype in dtypes)
    return Line(
        "factors equal autograd, sample by sample",
        worst <= tolerance and num_zero < compared,
        f"{compared} gradients ({num_zero} of them zero), worst relative difference {worst:.1e}, allowed "
        f"{tolerance:.0e}; {worst_layer}",
        "this layer's forward is not a plain x W': leave it out of model.lora_targets, or report the model",
    )


def _both(
    hook: SelectionHook, perturbations: dict[str, torch.Tensor], samples: list[Sample]
) -> tuple[dict, list[dict]]:
    """Gradients of all samples by the code that selection uses, and of each by autograd.

    In float16 they have a loss scale that fits, the same on all ranks.
    """
    scale = hook.scorer.scoring_loss_scale()
    while True:
        scored = _scored(hook, perturbations, samples, scale)
        references = [_reference(hook, perturbations, sample, scale) for sample in samples]
        found = [*scored.values(), *(gradient for reference in references for gradient in reference.values())]
        overflows = torch.tensor(
            sum(not gradient.isfinite().all() for gradient in found), device=hook.engine.device
        )
        if scale == 1 or hook.collectives.sum(overflows).item() == 0:
            return scored, references
        scale = max(1.0, scale / OVERFLOW_STEP)


def _groups(hook: SelectionHook) -> Iterator[list[str]]:
    """Layers in groups of bounded size; under ZeRO-3 the same on every rank, since shapes are."""
    group, elements = list[str](), 0
    for name in hook.layers:
        out_features, in_features = hook.owners.shapes[name + ".weight"]
        if group and elements + out_features * in_features > REFERENCE_ELEMENTS:
            yield group
            group, elements = [], 0
        group.append(name)
        elements += out_features * in_features
    yield group


def _perturbations(hook: SelectionHook, group: list[str]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    device, dtype = hook.engine.device, hook.layers[group[0]].weight.dtype

    def draw(name: str) -> torch.Tensor:
        return 0.01 * torch.randn(hook.owners.shapes[name + ".weight"], generator=generator)

    return {name: draw(name).to(device, dtype).requires_grad_() for name in group}


@contextmanager
def _perturbed(hook: SelectionHook, perturbations: dict[str, torch.Tensor]):
    """Add the perturbations to the weights of their layers, while inside."""

    def adding(name: str):
        return lambda _, inputs, output: output + F.linear(inputs[0], perturbations[name])

    handles = [hook.layers[name].register_forward_hook(adding(name)) for name in perturbations]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        release_gathered(hook.engine)


def _scored(
    hook: SelectionHook, perturbations: dict[str, torch.Tensor], samples: list[Sample], scale: float
) -> dict[str, torch.Tensor]:
    """Per-sample gradients (B, O, I) by the code that selection uses."""
    found: dict[str, torch.Tensor] = {}
    module, layers = hook.engine.module, {name: hook.layers[name] for name in perturbations}
    input_ids_BT, labels_BT, lengths = hook.passes.to_batch(samples, len(samples))

    def keep(name, activation_BTI, output_grad_BTO):
        found[name] = per_sample_gradient(activation_BTI, output_grad_BTO, lengths)

    constants = {name: perturbation.detach() for name, perturbation in perturbations.items()}
    with (
        torch.enable_grad(),
        _perturbed(hook, constants),
        scoring_pass(module, layers, keep, hook.passes.leaf, scale),
    ):
        (
            per_sample_loss(causal_logits(module, input_ids_BT, lengths), labels_BT, lengths).sum() * scale
        ).backward()
    return found


def _reference(
    hook: SelectionHook, perturbations: dict[str, torch.Tensor], sample: Sample, scale: float
) -> dict[str, torch.Tensor]:
    """Gradient (O, I) of one sample's loss for the weight of each layer.

    Autograd differentiates with respect to the perturbation of the weight.
    """
    module = hook.engine.module
    input_ids_BT, labels_BT = collate([sample], hook.pad_token_id, device=hook.engine.device)
    with (
        torch.enable_grad(),
        _perturbed(hook, perturbations),
        scoring_pass(module, {}, lambda *_: None, hook.passes.leaf),
    ):
        loss = per_sample_loss(causal_logits(module, input_ids_BT), labels_BT).sum()
        gradients = torch.autograd.grad(loss * scale, list(perturbations.values()))
    return {name: gradient.float() / scale for name, gradient in zip(perturbations, gradients)}


def _addresses(hook: SelectionHook) -> Line:
    """A line about the addresses found; ``SelectionHook.attach`` has refused gaps already."""
    elements = sum(out_features * in_features for out_features, in_features in hook.owners.shapes.values())
    ranks = hook.collectives.world_size
    found = (
        f"{elements:,} elements of {len(hook.owners.shapes)} weights, each owned by exactly one of {ranks} "
        "ranks"
    )
    return Line("addresses of the Adam state", not hook.owners.gaps(), found)


def _contraction(hook: SelectionHook, num_candidates: int, num_tokens: int) -> Line:
    """A line about the counts. It fails with the error for a way that is forced and does not work."""
    try:
        moments, watch = Moments(hook.scorer.fragments()), Stopwatch(hook.engine.device)
        gram = hook.scorer.gram(num_candidates, num_tokens, moments, step=0, watch=watch)
    except ValueError as error:
        return Line("contraction of factors", False, str(error), "set selection.contraction to auto")
    assert isinstance(gram, ExactGram)  # the others have no choice
    return Line("contraction of factors", True, f"{summary(gram.plan)} at {num_tokens} tokens")


def _memory(hook: SelectionHook, num_candidates: int, num_tokens: int) -> Line:
    """A check that whatever waits between the scoring micro-batches fits; a single pass keeps nothing."""
    rows_per_pass = hook.settings.scoring_micro_batch_size or num_candidates
    held = held_bytes(
        hook.owners.shapes, max(0, num_candidates - rows_per_pass), num_tokens, factor_bytes(hook.layers)
    )
    if hook.engine.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(hook.engine.device)
    else:
        free = psutil.virtual_memory().available // hook.collectives.world_size
    found = f"{held / 2**30:.2f} GiB a rank at {num_tokens} tokens, {free / 2**30:.1f} GiB free"
    remedy = (
        "raise selection.scoring_micro_batch_size (0 streams and keeps nothing) or lower "
        "selection.candidates_per_step"
    )
    return Line("held between scoring micro-batches", held < free, found, remedy)


def _fingerprint(engine: Engine, rank: int) -> tuple:
    """Exact sums of this rank's parameters and their gradients, flags, counters and random states."""
    tensors = [own_part(p, rank) for p in engine.module.parameters()]
    gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    return (
        [_total(tensor) for tensor in tensors],
        [_total(gradient) for gradient in gradients],
        [p.requires_grad for p in engine.module.parameters()],
        [child.training for child in engine.module.modules()],
        engine.micro_steps,
        engine.global_steps,
        torch.get_rng_state().tolist(),
        get_accelerator().get_rng_state().tolist(),
    )


def _total(tensor: torch.Tensor) -> float:
    return tensor.sum(dtype=torch.float64).item()


def _untouched(hook: SelectionHook, before: tuple) -> Line:
    passed = _fingerprint(hook.engine, hook.collectives.rank) == before
    found = (
        "parameters, gradients, flags, counters and random state are as before"
        if passed
        else "the engine's state has changed"
    )
    return Line(
        "scoring leaves the engine untouched",
        passed,
        found,
        "a module changes its own state in forward: exclude it",
    )


def _same_selection(hook: SelectionHook, samples: list[Sample]) -> Line:
    """A check that all ranks select the same.

    Before the first step a selection is a random draw, or needs no moments; ranks that disagree raise.
    """
    look = hook.select(samples, step=0)
    kept = len(look.selection.indices)
    found = f"{look.selection_hash} ({kept} of {len(samples) * hook.collectives.world_size} candidates)"
    return Line("the selection is the same on all ranks", look.selection_hash != "" and kept > 0, found)
