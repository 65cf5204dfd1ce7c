# C candidates
"""The ranks' side of test_hook.py: what a hook does where something is missing or broken."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pipeline.selection.contract import Selection
from tests.reference import tiny_llama
from tests.scoring.engine_cases import (
    NUM_CANDIDATES,
    PLAYED,
    Case,
    build_engine,
    candidates,
    close,
    settings_of,
    share,
    target_set,
)

FIRST_CASES = [
    *(Case(stage) for stage in (0, 1, 2, 3)),
    Case(0, "full", "bf16"),
    Case(2, "lora", "bf16"),
]
METHOD_CASES = [Case(2), Case(3, "lora", "bf16")]
SPOILED = 5  # candidate whose gradient is made non-finite; it belongs to the last rank


def before_and_after_the_first_step(cases: list[Case], model_folder: str, folder: str) -> dict:
    """By case selections at every stage: with no Adam state, inside and after the warm-up steps, and by
    methods that score nothing."""
    from pipeline.hook import SelectionHook
    from pipeline.step.weighted_step import weighted_step

    rank, world_size = start()
    found = {}
    for number, case in enumerate(cases):
        settings = settings_of(case, model_folder, Path(folder) / f"first-{rank}-{number}.json", world_size)
        engine = build_engine(case, settings)

        def select(step, engine=engine, settings=settings, **changes):
            hook = SelectionHook.attach(
                engine, target_set(), replace(settings.selection, **changes), 0, seed=3
            )
            look = hook.select(share(candidates(0), rank, world_size), step)
            kept = look.selection
            return look.is_warmup, look.signals is not None, kept.indices.tolist(), kept.weights.tolist()

        seen = {
            "before": select(0),
            "again": select(0),
            "default step": select(None),
            "identity": select(0, geometry="identity"),
            "compensate": select(0, geometry="identity", momentum="compensate"),
            "random": select(0, method="random"),
            "full": select(0, method="full"),
        }
        for step, selection in enumerate(PLAYED):
            weighted_step(engine, share(candidates(step), rank, world_size), selection, 0)
        seen |= {
            "warm-up": select(1, warmup_steps=2),
            "after": select(2, warmup_steps=2),
            "top_k": select(2, method="top_k"),
        }
        seen["engine's count"] = select(None, warmup_steps=3)
        found[str(case)] = seen
        close(engine)
    return found


def every_method(cases: list[Case], model_folder: str, folder: str) -> dict:
    """After two updates, at step 2: what each method is given, what it costs and what it selects; by engine
    and method."""
    import pipeline.hook as hooks
    import pipeline.step.passes as passes
    from pipeline.selection.registry import METHODS
    from pipeline.step.weighted_step import weighted_step

    rank, world_size = start()
    found, scoring_pass, reference = {}, passes.scoring_pass, reference_llama().float()
    for number, case in enumerate(cases):
        settings = settings_of(case, model_folder, Path(folder) / f"methods-{rank}-{number}.json", world_size)
        engine = build_engine(case, settings)
        for step, selection in enumerate(PLAYED):
            weighted_step(engine, share(candidates(step), rank, world_size), selection, 0)
        own, before = share(candidates(2), rank, world_size), fingerprint(engine)
        found[str(case)] = {}
        for name, method in METHODS.items():
            # No backward without need: there the only way to one is shut.
            passes.scoring_pass = scoring_pass if method.takes_backward else None
            changes = {
                "method": name,
                "scoring_micro_batch_size": 2,
                "warmup_steps": 0 if method.geometry is None else 2,
            }
            targets = target_set() if method.needs_target else None
            reference_model = reference if method.needs_reference else None
            hook = hooks.SelectionHook.attach(
                engine, targets, replace(settings.selection, **changes), 0, 3, reference_model
            )
            look = hook.select(own, 2)
            signals = {} if look.signals is None else vars(look.signals)
            found[str(case)][name] = {
                "signals": {key: value for key, value in signals.items() if value is not None},
                "indices": look.selection.indices.tolist(),
                "weights": look.selection.weights.tolist(),
                "stages": set(look.seconds),
                "loss_C": look.loss_C,
                "target_loss": look.target_loss,
                "bytes_sent": look.bytes_sent,
            }
        passes.scoring_pass = scoring_pass
        found[str(case)]["untouched"] = fingerprint(engine) == before
        changed = replace(settings.selection, method="max_loss", keep_per_step=2, logits_mib=0.003)
        hook = hooks.SelectionHook.attach(engine, None, changed, 0)
        look = hook.select(own, 2)
        found[str(case)]["in chunks"] = (look.selection.indices.tolist(), look.loss_C)
        has_plain_logits, passes.has_plain_logits = passes.has_plain_logits, lambda *_: False
        hook = hooks.SelectionHook.attach(engine, None, changed, 0)
        found[str(case)]["too long"] = error_of(lambda hook=hook, own=own: hook.select(own, 2))
        hook = hooks.SelectionHook.attach(engine, None, replace(changed, logits_mib=1024), 0)
        found[str(case)]["all at once"] = hook.select(own, 2).loss_C
        passes.has_plain_logits = has_plain_logits

        def refusal(engine=engine, selection=settings.selection, reference=None, **changes):
            attach = hooks.SelectionHook.attach
            return error_of(
                lambda: attach(
                    engine, target_set(), replace(selection, **changes), 0, reference_model=reference
                )
            )

        found[str(case)]["refused"] = {
            "rho_loss": refusal(method="rho_loss"),
            "greats": refusal(method="greats", geometry="update"),
            "less": refusal(method="less", momentum="compensate"),
            "useless reference": refusal(reference=engine.module),
            "too deep": refusal(last_blocks=9),
        }
        groups = engine.optimizer.param_groups
        first_rate = groups[0]["lr"]
        groups[0]["lr"] = first_rate / 2
        found[str(case)]["refused"]["two rates"] = refusal(method="opus") if len(groups) > 1 else None
        groups[0]["lr"] = first_rate
        close(engine)
    return found


def reference_llama() -> torch.nn.Module:
    return tiny_llama(seed=1)


def fingerprint(engine) -> tuple:
    import torch.distributed as dist

    from pipeline.training.self_check import _fingerprint

    return _fingerprint(engine, dist.get_rank())


def broken(model_folder: str, folder: str) -> dict:
    """Errors, by name, as this rank sees them; and a pass with one spoiled candidate."""
    import pipeline.hook as hooks
    import pipeline.step.chooser as chooser
    import pipeline.step.passes as passes
    from pipeline.selection import registry
    from pipeline.selection.contract import Method
    from pipeline.step.weighted_step import weighted_step

    rank, world_size = start()
    settings = settings_of(Case(2), model_folder, Path(folder) / f"broken-{rank}.json", world_size)
    engine = build_engine(Case(2), settings)
    attach = lambda **changes: hooks.SelectionHook.attach(
        engine, target_set(), replace(settings.selection, **changes), 0
    )
    own = share(candidates(2), rank, world_size)
    for step, selection in enumerate(PLAYED):
        weighted_step(engine, share(candidates(step), rank, world_size), selection, 0)
    outcomes = {"unequal": error_of(lambda: attach().select(own if rank == 0 else own[:2], 2))}
    outcomes["none"] = error_of(lambda: attach().select([], 2))
    outcomes["no target"] = error_of(lambda: hooks.SelectionHook.attach(engine, None, settings.selection, 0))

    outcomes["clean gram"] = attach().select(own, 2).signals.gram_CC

    original = passes.Passes.losses
    last_tokens = candidates(2)[SPOILED].input_ids[-3:]

    def spoil(own, module, input_ids_BT, labels_BT, *more):
        """NaN for the one sample that ends with these tokens."""
        ends = [row[row != -100][-3:].tolist() == last_tokens for row in labels_BT]
        return original(own, module, input_ids_BT, labels_BT, *more) * torch.where(
            torch.tensor(ends), torch.nan, 1.0
        )

    passes.Passes.losses = spoil
    look = attach().select(own, 2)
    outcomes["spoiled"] = (
        look.selection.dropped,
        look.selection.indices.tolist(),
        look.signals.gram_CC,
        look.loss_C,
    )
    outcomes["step after"] = weighted_step(engine, own, look.selection, 0).loss
    passes.Passes.losses = lambda *inputs: original(*inputs) * torch.nan
    outcomes["target"] = error_of(lambda: attach().select(own, 2))
    passes.Passes.losses = original

    backward = passes.Passes.backward

    def without_target(own, samples, num_rows, num_tokens, weight, *more):
        is_target = weight != 1.0
        return backward(own, samples, num_rows, num_tokens, np.nan if is_target else weight, *more)

    passes.Passes.backward = without_target
    hook, lost = attach(), []
    for _ in range(chooser.MOST_TARGETS_LOST):
        look = hook.select(own, 2)
        kept = look.selection
        lost.append((look.target_lost, kept.fallback, len(kept.indices), list(look.warnings)))
    outcomes["targets lost"] = lost
    outcomes["target lost again"] = error_of(lambda: hook.select(own, 2))
    passes.Passes.backward = backward

    causal_logits = passes.causal_logits
    fitting = 1

    def scarce(module, input_ids_BT, lengths):
        """Memory on rank 1 is for ``fitting`` samples at a time."""
        if rank == 1 and len(input_ids_BT) > fitting:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return causal_logits(module, input_ids_BT, lengths)

    whole_CC = attach().select(own, 2).signals.gram_CC
    passes.causal_logits = scarce
    hook, halved = attach(), []
    for _ in range(2):
        look = hook.select(own, 2)
        rows_per_pass = hook.state_dict()["rows_per_pass"]
        halved.append((look.out_of_memory, rows_per_pass, list(look.warnings), look.signals.gram_CC))
    outcomes["out of memory"], fitting = (whole_CC, *halved), 0
    outcomes["no memory at all"] = error_of(lambda: hook.select(own, 2))
    passes.causal_logits = causal_logits

    def short(*_):
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    backward, torch.Tensor.backward = torch.Tensor.backward, short
    outcomes["no memory in the backward"] = error_of(lambda: attach().select(own, 2))
    torch.Tensor.backward = backward
    hook = attach()
    hook.select(own, 2)
    passes.causal_logits, engine.zero_optimization_partition_weights = short, lambda: True
    outcomes["no memory under ZeRO-3"] = error_of(lambda: hook.select(own, 2))
    passes.causal_logits = causal_logits
    del engine.zero_optimization_partition_weights

    def only_here(signals, keep, num_candidates, rng, _):
        raise ValueError("the solver of rank 0 gives up")

    registry.METHODS["breaks"] = Method("breaks", needs="nothing", select=only_here)
    outcomes["solver"] = error_of(lambda: attach(method="breaks").select(own, 2))

    own_choice = Selection(np.array([rank]), np.array([1.0]))
    together, chooser.together = chooser.together, lambda *_: (own_choice, None)
    outcomes["disagree"] = error_of(lambda: attach(method="random").select(own, 2))
    chooser.together = together
    close(engine)
    return outcomes


def refused(model_folder: str, folder: str) -> dict:
    """What ``attach`` says to engines that selection cannot work with."""
    import deepspeed

    from pipeline.hook import SelectionHook
    from pipeline.training.model import load_model

    rank, world_size = start()
    settings = settings_of(Case(1), model_folder, Path(folder) / f"refused-{rank}.json", world_size)
    outcomes = {}
    configurations = {
        "sgd": {"optimizer": None, "zero_allow_untested_optimizer": True},
        "norms only": {"optimizer": {"type": "AdamW", "params": {"torch_adam": True}}},
    }
    for name, changes in configurations.items():
        model, _ = load_model(settings.model, torch.float32, torch.device("cpu"), 0)
        if name == "norms only":
            for parameter_name, parameter in model.named_parameters():
                parameter.requires_grad_("norm" in parameter_name)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        config = {
            "train_micro_batch_size_per_gpu": 1,
            "zero_optimization": {"stage": 1},
            "steps_per_print": 10**9,
            **changes,
        }
        optimizer = torch.optim.SGD(trained, lr=0.1) if config["optimizer"] is None else None
        config = {key: value for key, value in config.items() if value is not None}
        engine, *_ = deepspeed.initialize(
            model=model, config=config, model_parameters=trained, optimizer=optimizer
        )
        attach = lambda engine=engine, **changes: SelectionHook.attach(
            engine, target_set(), replace(settings.selection, **changes), 0
        )
        outcomes[name] = error_of(attach)
        if name == "sgd":
            hook = attach(geometry="identity")
            look = hook.select(share(candidates(2), rank, world_size), 0)
            outcomes["sgd in identity geometry"] = look.signals.gram_CC.shape == (
                NUM_CANDIDATES,
                NUM_CANDIDATES,
            )
        close(engine)
    return outcomes


def error_of(action) -> str:
    try:
        action()
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def start() -> tuple[int, int]:
    from pipeline.training.engine import start_process_group

    return start_process_group(120)[:2]
