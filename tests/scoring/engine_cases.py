# C candidates
"""One story, told by real engines and by the reference: two weighted steps, a scoring pass in many variants,
a last step.

``run_engines`` is the ranks' side; ``expected`` the slow side, in one process, without DeepSpeed and
pipeline/scoring.
"""

import json
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch

from pipeline.config import Config, ModelConfig, SelectionConfig, TrainingConfig
from pipeline.data.sample import Sample
from pipeline.data.targets import TargetSet
from pipeline.selection.contract import Selection
from tests import reference

NUM_CANDIDATES, KEEP, NUM_TARGETS, SCORED_STEP = 6, 4, 3, 2
LR, BETAS, WEIGHT_DECAY = 1e-2, (0.9, 0.95), 0.1
# of the second group of `halves`
OTHER = reference.Hyper(lr=5e-3, beta1=0.8, beta2=0.9, eps=1e-3, weight_decay=0.0)
RIDGE = 0.5
# All kept on the first rank of two; then in another order than the candidates', on both. Weights of no order.
PLAYED = (
    Selection(np.array([0, 2, 1]), np.array([0.5, 0.2, 0.3])),
    Selection(np.array([5, 0, 3, 2]), np.array([0.4, 0.1, 0.3, 0.2])),
)
LAST_PLAYED = Selection(np.array([5, 0, 4, 1]), np.array([0.1, 0.2, 0.3, 0.4]))


@dataclass(frozen=True)
class Variant:
    """How the same scores are asked for."""

    micro_batch: int = 0
    exchange_bytes: int = 64 << 20
    geometry: str = "update"
    momentum: str = "cancel"
    backend: str = "exact"
    """Approximate ones with a projection larger than any layer, which projects nothing."""
    last_blocks: int = 0
    contraction: str = "auto"
    logits_mib: float = 1024

    @property
    def gram(self) -> tuple:
        """Which Gram matrix of the reference is meant."""
        return (
            self.geometry,
            self.momentum,
            "rank_one" if self.backend == "factored" else "adam",
            self.last_blocks,
        )

    def __str__(self):
        return "-".join(str(value) for value in astuple(self))


TINY = 700  # bytes: less than one weight row of all candidates, so every row travels alone
PLAIN, CURVATURE, IDENTITY = Variant(), Variant(geometry="curvature"), Variant(geometry="identity")
FEW = (PLAIN, CURVATURE, IDENTITY)
PROJECTED, FACTORED, LAST = Variant(backend="projected"), Variant(backend="factored"), Variant(last_blocks=1)
BACKENDS = (*FEW, PROJECTED, FACTORED, LAST, Variant(micro_batch=1, backend="factored", last_blocks=1))
ALL = (
    *BACKENDS,
    *(Variant(backend=backend, geometry="curvature") for backend in ("projected", "factored")),
    Variant(geometry="update_to_gradient"),
    *(
        Variant(backend=backend, geometry="update_to_gradient", momentum="compensate")
        for backend in ("projected", "factored")
    ),
    *(
        Variant(backend=backend, geometry="identity", momentum="compensate")
        for backend in ("projected", "factored")
    ),
    *(Variant(backend=backend, momentum="compensate") for backend in ("projected", "factored")),
    *(Variant(2, TINY, backend=backend) for backend in ("projected", "factored")),
    *(Variant(micro_batch=number, geometry="identity", contraction="token_token") for number in (0, 2)),
    Variant(geometry="curvature", contraction="row_chunks"),
    Variant(logits_mib=0.003),  # about 10 positions at a time
    Variant(logits_mib=0),
    *(
        Variant(geometry=geometry, momentum="compensate")
        for geometry in ("update", "curvature", "identity", "update_to_gradient")
    ),
    *(Variant(micro_batch=number) for number in (1, 2, 3)),
    Variant(exchange_bytes=TINY),
    Variant(micro_batch=2, exchange_bytes=5000),
    Variant(2, TINY, "curvature", "compensate"),
)


@dataclass(frozen=True)
class Case:
    """A DeepSpeed configuration and a way to fine-tune."""

    stage: int
    kind: str = "full"
    """``full``, ``lora`` or ``fresh_lora`` (with lora_B zero, as training begins)."""
    precision: str = "fp32"
    zero: tuple = ()
    top: tuple = ()
    gradient_accumulation_steps: int = 1
    halves: bool = False
    """Blocks 0 and 1 in two parameter groups with different hyper-parameters, in place of decay and no
    decay."""
    adam: str = "torch"
    checkpointing: bool = False
    is_packed: bool = False
    variants: tuple = FEW
    note: str = ""

    @property
    def eps(self) -> float:
        """In bf16 a larger one: rounding is all that is left of the smallest gradients, and 1 / eps is what
        it counts."""
        return 2e-3 if self.precision == "bf16" else 1e-4

    def __str__(self):
        parts = [f"zero{self.stage}", self.kind, self.precision, self.note]
        return "-".join(part for part in parts if part)


def candidates(step: int) -> list[Sample]:
    """Unequal lengths; the scored step has one sample without supervision among them."""
    lengths = [[9, 4, 12, 7, 15, 5], [6, 11, 3, 8, 5, 13], [8, 14, 5, 10, 3, 9]][step]
    return reference.random_samples(lengths, seed=10 + step, unsupervised=(3,) if step == SCORED_STEP else ())


def target_set() -> TargetSet:
    return TargetSet(reference.random_samples([7, 12, 4, 9, 6], seed=20), NUM_TARGETS, seed=0)


# -- the ranks' side --


def settings_of(case: Case, model_folder: str, file: Path, world_size: int) -> Config:
    file.write_text(
        json.dumps({"zero_optimization": {"stage": case.stage, **dict(case.zero)}, **dict(case.top)})
    )
    return Config(
        deepspeed=str(file),
        model=ModelConfig(name=model_folder, lora_rank=0, gradient_checkpointing=case.checkpointing),
        selection=SelectionConfig(
            candidates_per_step=NUM_CANDIDATES,
            keep_per_step=KEEP,
            target_per_step=NUM_TARGETS,
            warmup_steps=0,
            ridge=RIDGE,
        ),
        training=TrainingConfig(
            micro_batch_size=KEEP // world_size // case.gradient_accumulation_steps,
            learning_rate=LR,
            schedule="constant",
            betas=BETAS,
            eps=case.eps,
            weight_decay=WEIGHT_DECAY,
            gradient_clipping=0.0,
            adam=case.adam,
            precision=case.precision,
        ),
    )


def build_engine(case: Case, settings: Config, dropout: float = 0.0):
    """As pipeline/training/prepare.py does, but with adapters of known values."""
    from pipeline.training import engine as engines
    from pipeline.training.model import load_model, partition_while_loading

    _, world_size, device = engines.start_process_group(120)
    dtype = engines.resolve_dtype(case.precision, device)
    merged = engines.deepspeed_config(settings, world_size, dtype)
    partitioned = partition_while_loading(merged)
    model, _ = load_model(settings.model, dtype, device, seed=0)
    del partitioned
    if case.kind != "full":
        model = reference.add_lora(model, dropout)
        reference.fill_adapters(model, zero_b=case.kind == "fresh_lora")
    if not case.halves:
        return engines.build_engine(model, merged, settings.training)
    import deepspeed

    return deepspeed.initialize(model=model, config=merged, model_parameters=two_halves(model))[0]


def two_halves(model) -> list[dict]:
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    other = vars(OTHER)
    return [
        {"params": [p for name, p in trained if ".layers.1." not in name]},
        {
            "params": [p for name, p in trained if ".layers.1." in name],
            "lr": other["lr"],
            "eps": other["eps"],
            "betas": (other["beta1"], other["beta2"]),
            "weight_decay": other["weight_decay"],
        },
    ]


def close(engine) -> None:
    """So that the next engine of this process starts from nothing."""
    engine.destroy()
    for parameter in engine.module.parameters():
        parameter.grad = None


def full_parameters(engine) -> dict[str, torch.Tensor]:
    """Trained parameters as the model has them, whole, float32; every rank calls it."""
    import deepspeed

    trained = {name: p for name, p in engine.module.named_parameters() if p.requires_grad}
    with deepspeed.zero.GatheredParameters(
        list(trained.values()), enabled=engine.zero_optimization_stage() == 3
    ):
        return {name: parameter.detach().float().clone() for name, parameter in trained.items()}


def share(samples: list[Sample], rank: int, world_size: int) -> list[Sample]:
    part = len(samples) // world_size
    return samples[rank * part : (rank + 1) * part]


@contextmanager
def exchange_bound(num_bytes: int):
    """Below the smallest bound that the settings allow (1 MiB)."""
    from pipeline.scoring.backends import BACKENDS

    originals = dict(BACKENDS)

    def bounded(original):
        return lambda problem, *others: original(replace(problem, exchange_bytes=num_bytes), *others)

    BACKENDS.update({name: bounded(original) for name, original in originals.items()})
    try:
        yield
    finally:
        BACKENDS.update(originals)


def run_engines(cases: list[Case], model_folder: str, folder: str) -> list[dict]:
    """What this rank saw, case by case."""
    import torch.distributed as dist

    from pipeline.training.engine import start_process_group

    rank, world_size, _ = start_process_group(120)
    results = []
    for number, case in enumerate(cases):
        settings = settings_of(case, model_folder, Path(folder) / f"{rank}-{number}.json", world_size)
        results.append(_run_engine(case, settings, rank, world_size))
        dist.barrier()
    return results


def _run_engine(case: Case, settings: Config, rank: int, world_size: int) -> dict:
    from pipeline.hook import SelectionHook
    from pipeline.step.weighted_step import weighted_step

    engine = build_engine(case, settings)
    result = {"wrapper": type(engine.optimizer).__name__, "grams": {}}
    targets = target_set()

    def attach(variant):
        changed = replace(
            settings.selection,
            geometry=variant.geometry,
            momentum=variant.momentum,
            scoring_micro_batch_size=variant.micro_batch,
            backend=variant.backend,
            projection_size=1000,
            last_blocks=variant.last_blocks,
            contraction=variant.contraction,
            logits_mib=variant.logits_mib,
        )
        return SelectionHook.attach(
            engine, targets, changed, pad_token_id=0, seed=3, is_packed=case.is_packed
        )

    train = lambda own, selection: weighted_step(
        engine, own, selection, pad_token_id=0, is_packed=case.is_packed
    )
    losses = []
    for step, selection in enumerate(PLAYED):
        losses.append(train(share(candidates(step), rank, world_size), selection).loss)
    result["moments"] = _fragments(engine)
    for variant in case.variants:
        hook = attach(variant)
        with exchange_bound(variant.exchange_bytes):
            look = hook.select(share(candidates(SCORED_STEP), rank, world_size), step=SCORED_STEP)
        selection, signals = look.selection, look.signals
        result["grams"][variant] = {
            "gram": np.block(
                [
                    [signals.gram_CC, signals.alignment_C[:, None]],
                    [signals.alignment_C[None], np.array([[signals.target_norm_squared]])],
                ]
            ),
            "indices": selection.indices,
            "weights": selection.weights,
            "fallback": selection.fallback,
            "hash": look.selection_hash,
            "loss_C": look.loss_C,
            "target_loss": look.target_loss,
            "bytes_sent": look.bytes_sent,
        }
    losses.append(train(share(candidates(SCORED_STEP), rank, world_size), LAST_PLAYED).loss)
    result["losses"] = losses
    parameters = full_parameters(engine)
    result["parameters"] = (
        parameters if rank == 0 else {name: p.double().sum().item() for name, p in parameters.items()}
    )
    close(engine)
    return result


def _fragments(engine) -> list[tuple]:
    from pipeline.scoring.moments import fragments

    return [
        (f.name, f.start, f.numel, f.step, f.beta1, f.beta2, f.eps)
        + ((f.exp_avg.float().clone(), f.exp_avg_sq.float().clone()) if f.numel else (None, None))
        for f in fragments(engine)
    ]


# -- the slow side --


@dataclass
class Expected:
    names: list[str]
    adam: reference.AdamW
    """After the two first steps."""
    grams: dict[tuple, np.ndarray] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    loss_C: list[float] = field(default_factory=list)
    target_loss: float = 0.0
    parameters: dict[str, torch.Tensor] = field(default_factory=dict)


def expected(case: Case, model_folder: str) -> Expected:
    dummy_step = case.stage == 0 and case.precision == "bf16"
    return _expected(case.kind, case.halves, case.precision == "bf16", dummy_step, case.eps, model_folder)


@cache
def _expected(
    kind: str, halves: bool, is_bf16: bool, dummy_step: bool, eps: float, model_folder: str
) -> Expected:
    """Gradients of a bf16 run are taken at weights rounded to bf16, and its updates go to a copy that is not
    rounded."""
    model = reference.load(model_folder, kind.removeprefix("fresh_"), zero_b=kind == "fresh_lora")
    if is_bf16:
        model.to(torch.bfloat16).to(torch.float64)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    hyper = {name: _hyper(name, parameter, halves, eps) for name, parameter in trained.items()}
    adam = reference.AdamW({name: parameter.detach().clone() for name, parameter in trained.items()}, hyper)

    @torch.no_grad()
    def update(gradients):
        adam.update(gradients)
        for name, master in adam.parameters.items():
            trained[name].copy_(master.bfloat16() if is_bf16 else master)

    if dummy_step:  # DeepSpeed's bf16 wrapper at stage 0 makes one with gradients of zero when it is built
        update({name: torch.zeros_like(parameter) for name, parameter in trained.items()})
    found = Expected(reference.linear_weights(model), adam)
    for step, selection in enumerate(PLAYED):
        batch = [(candidates(step)[i], w) for i, w in zip(selection.indices, selection.weights)]
        found.losses.append(sum(w * reference.sample_loss(model, sample).item() for sample, w in batch))
        update(reference.gradient(model, batch))
    scored, targets = candidates(SCORED_STEP), target_set().batch(SCORED_STEP)
    gradients = [reference.gradient(model, [(sample, 1.0)]) for sample in scored]
    target = reference.gradient(model, [(sample, 1 / len(targets)) for sample in targets])
    for variant in ALL:
        names = [name for name in found.names if not variant.last_blocks or ".layers.0." not in name]
        if variant.gram not in found.grams:
            found.grams[variant.gram] = adam.gram(gradients, target, names, *variant.gram[:3]).numpy()
    found.loss_C = [reference.sample_loss(model, sample).item() for sample in scored]
    found.target_loss = sum(reference.sample_loss(model, sample).item() for sample in targets) / len(targets)
    found.adam = reference.AdamW({}, hyper, adam.step)
    found.adam.exp_avg = {name: m.clone() for name, m in adam.exp_avg.items()}
    found.adam.exp_avg_sq = {name: v.clone() for name, v in adam.exp_avg_sq.items()}
    last = list(zip(LAST_PLAYED.indices.tolist(), LAST_PLAYED.weights.tolist()))
    found.losses.append(sum(w * found.loss_C[i] for i, w in last))
    update(reference.gradient(model, [(scored[i], w) for i, w in last]))
    found.parameters = {name: parameter.detach().clone() for name, parameter in trained.items()}
    return found


def _hyper(name: str, parameter: torch.Tensor, halves: bool, eps: float) -> reference.Hyper:
    if halves and ".layers.1." in name:
        return OTHER
    decays = halves or parameter.dim() >= 2
    return reference.Hyper(LR, *BETAS, eps, WEIGHT_DECAY if decays else 0.0)
