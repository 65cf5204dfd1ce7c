"""The ranks' side of test_trainer.py: small runs of real Trainers with and without selection."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tests import reference

NUM_SAMPLES, STEPS, LR = 24, 5, 1e-2


@dataclass(frozen=True)
class Way:
    """How a Trainer trains: ``stage`` of ZeRO, None without DeepSpeed; ``learned`` is what it proposes."""

    stage: int | None = None
    precision: str = "fp32"
    gradient_accumulation_steps: int = 2
    lora: bool = False
    learned: bool = False

    def __str__(self):
        kind = "torch" if self.stage is None else f"zero{self.stage}"
        return "-".join(
            [
                kind,
                self.precision,
                f"accumulation{self.gradient_accumulation_steps}",
                *(["lora"] if self.lora else []),
                *(["learned"] if self.learned else []),
            ]
        )


def pool() -> list[dict]:
    lengths = [9, 4, 12, 7, 14, 5, 8, 11, 6, 10, 13, 3] * 2
    return [
        {"input_ids": s.input_ids, "labels": s.labels} for s in reference.random_samples(lengths, seed=60)
    ]


def examples() -> list[dict]:
    return [
        {"input_ids": s.input_ids, "labels": s.labels}
        for s in reference.random_samples([7, 12, 4, 9, 6], seed=61)
    ]


def start_afresh() -> None:
    """accelerate and transformers keep what kind of training it is for the whole process; DeepSpeed would
    compile an all-reduce."""
    import deepspeed
    from accelerate.state import AcceleratorState, GradientState, PartialState
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    AcceleratorState._reset_state()
    GradientState._reset_state()
    PartialState._reset_state()
    unset_hf_deepspeed_config()


def arguments(way: Way, folder, per_device: int, **options):
    from transformers import TrainingArguments

    start_afresh()
    config = {
        "zero_optimization": {"stage": way.stage},
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "steps_per_print": 10**9,
    }
    settings = dict(
        output_dir=str(folder),
        per_device_train_batch_size=per_device,
        learning_rate=LR,
        weight_decay=0.1,
        adam_epsilon=1e-4,
        gradient_accumulation_steps=way.gradient_accumulation_steps,
        lr_scheduler_type="linear",
        max_steps=STEPS,
        deepspeed=None if way.stage is None else config,
        bf16=way.precision == "bf16",
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    return TrainingArguments(**{**settings, **options})


def model_of(model_folder: str, way: Way, **config) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32, **config)
    if way.lora:
        model = reference.add_lora(model, dropout=0.2)
        reference.fill_adapters(model)
    return model


def collator():
    from transformers import DataCollatorForSeq2Seq

    from tests.conftest import tokenizer

    return DataCollatorForSeq2Seq(tokenizer(), pad_to_multiple_of=8)


def whole(model) -> dict[str, torch.Tensor]:
    """Trained parameters, whole at every stage; every rank calls it."""
    import deepspeed

    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    is_partitioned = any(hasattr(parameter, "ds_id") for parameter in trained.values())
    with deepspeed.zero.GatheredParameters(list(trained.values()), enabled=is_partitioned):
        return {name: parameter.detach().float().clone() for name, parameter in trained.items()}


def close(trainer) -> dict[str, torch.Tensor]:
    """The trained parameters; nothing of the engine is left."""
    found = whole(trainer.model)
    if trainer.is_deepspeed_enabled:
        trainer.model_wrapped.destroy()
    return found


def settings(**changes):
    from pipeline.config import SelectionConfig

    return replace(
        SelectionConfig(
            candidates_per_step=8,
            keep_per_step=4,
            target_per_step=3,
            warmup_steps=1,
            ridge=0.5,
            proposal="uniform",
            score_every=1,
        ),
        **changes,
    )


def settings_of(way: Way):
    """With proposals that learn every third update scores; at stage 1 as many as it pays for."""
    if not way.learned:
        return settings()
    return settings(proposal="learned", pool_share=0.5, score_every="auto" if way.stage == 1 else 3)


def selecting(model, args, selection, **options):
    from pipeline.integrations.trainer import SelectionTrainer

    class Recording(SelectionTrainer):
        def get_batch_samples(self, *inputs):
            batches = super().get_batch_samples(*inputs)
            self.__dict__.setdefault("selections", []).append(
                (self.chosen.indices.tolist(), self.chosen.weights.tolist())
            )
            return batches

        def _note(self, look, plan=None, *rest):
            super()._note(look, plan, *rest)
            if plan is not None:
                seen = (plan.is_scored, plan.turn, plan.proposed.window, plan.proposed.positions_n.tolist())
                self.__dict__.setdefault("plans", []).append(seen)

    given = dict(train_dataset=pool(), target_dataset=examples(), data_collator=collator())
    return Recording(model=model, args=args, selection=selection, **{**given, **options})


def mean_of_samples(model, args):
    """A plain Trainer whose loss is the mean of the samples' mean losses."""
    from transformers import Trainer

    class MeanOfSamples(Trainer):
        # of transformers 5.19 and later; before, the count of items decides, which is then None
        loss_is_scaled_for_ga = False

        def get_batch_samples(self, *arguments):
            return super().get_batch_samples(*arguments)[0], None

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels = inputs.pop("labels")
            logits = model(**inputs, use_cache=False).logits.float()
            losses = [
                torch.nn.functional.cross_entropy(row_logits[:-1], row_labels[1:])
                for row_logits, row_labels in zip(logits, labels)
            ]
            loss = torch.stack(losses).mean()
            return (loss, logits) if return_outputs else loss

    return MeanOfSamples(model=model, args=args, train_dataset=pool(), data_collator=collator())


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def against_plain(ways: list[Way], model_folder: str, folder: str) -> dict[Way, dict]:
    """All candidates at uniform weights against a Trainer that knows no selection."""
    results = {}
    for way in ways:
        world_size = world()
        per_device = 8 // world_size // way.gradient_accumulation_steps
        args = arguments(way, folder, per_device)
        trainer = mean_of_samples(model_of(model_folder, way), args)
        before = whole(trainer.model)
        trainer.train()
        plain, plain_losses = close(trainer), losses(trainer)
        trainer = selecting(
            model_of(model_folder, way), arguments(way, folder, per_device), settings(method="full")
        )
        trainer.train()
        selected = close(trainer)
        results[way] = {
            "parameters": {
                name: (
                    (selected[name] - plain[name]).abs().max().item(),
                    (plain[name] - before[name]).abs().max().item(),
                )
                for name in plain
            },
            "losses": (losses(trainer), plain_losses),
        }
    return results


def world() -> int:
    import os

    return int(os.environ.get("WORLD_SIZE", "1"))


def against_own_loop(ways: list[Way], model_folder: str, folder: str) -> dict[Way, dict]:
    """Selections and final parameters of a SelectionTrainer, and of a loop written by hand over the same
    candidates."""
    results = {}
    for way in ways:
        per_device = 4 // world() // way.gradient_accumulation_steps
        args = arguments(way, folder, per_device)
        trainer = selecting(model_of(model_folder, way), args, settings_of(way))
        begin = whole(trainer.model)
        trainer.train()
        result = {
            "selections": trainer.selections,
            "log": trainer.state.log_history,
            "losses": losses(trainer),
        }
        other = selecting(model_of(model_folder, way), arguments(way, folder, per_device), settings_of(way))
        if way.learned:
            result["plans"] = trainer.plans
        trained = close(trainer)
        if way.learned:
            result["own"], result["own plans"], parameters = own_steps(way, model_folder, other, per_device)
        else:
            result["own"], parameters = own_loop(way, model_folder, candidate_batches(other), per_device)
        result["parameters"] = {
            name: (
                (trained[name] - parameters[name]).abs().max().item(),
                (trained[name] - begin[name]).abs().max().item(),
            )
            for name in begin
        }
        results[way] = result
    return results


def candidate_batches(trainer) -> list[list]:
    """The batches of each update, over as many epochs as it takes."""
    loader, found = trainer.get_train_dataloader(), []
    for epoch in range(STEPS):
        loader.set_epoch(epoch)
        batches = list(loader)
        size = trainer.args.gradient_accumulation_steps
        found += [batches[first : first + size] for first in range(0, len(batches), size)]
    return found[:STEPS]


def own_steps(way: Way, model_folder: str, trainer, per_device: int):
    """The program's own steps over the rows and the order of ``trainer``."""
    from pipeline.integrations.dataset_stream import Rows, SamplerStream
    from pipeline.proposal import features
    from pipeline.proposal.learned import Learned
    from pipeline.proposal.proposer import Proposer
    from pipeline.proposal.schedule import Every
    from pipeline.train_step import train_step

    loader = trainer.get_train_dataloader()  # before another seed is set: its sampler takes the present one
    model, optimizer, engine, hook = engine_of(way, model_folder, per_device)
    rows = Rows(loader.dataset, loader.collate_fn)
    table = features.make(rows, hook.targets.samples)
    proposal = Learned(table.features_Nd, 0.5, has_prior=True) if hook.collectives.rank == 0 else None
    proposer = Proposer(SamplerStream(rows, 8, loader, 42), hook.settings, proposal, Every(3), seed=42)
    chosen, plans = [], []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = LR * (1 - step / STEPS)
        trained = train_step(hook=hook, proposer=proposer, step=step)
        plan, selection = trained.plan, trained.look.selection
        chosen.append((selection.indices.tolist(), selection.weights.tolist()))
        plans.append((plan.is_scored, plan.turn, plan.proposed.window, plan.proposed.positions_n.tolist()))
    parameters = whole(model)
    engine.destroy()
    return chosen, plans, parameters


def own_loop(way: Way, model_folder: str, steps: list[list], per_device: int):
    """Under DeepSpeed with its engine; without, by hand."""
    from pipeline.data.batch import samples_of

    model, optimizer, engine, hook = engine_of(way, model_folder, per_device)
    chosen = []
    for step, batches in enumerate(steps):
        for group in optimizer.param_groups:
            group["lr"] = LR * (1 - step / STEPS)
        # With one micro-step the batch of a loader goes in as it is.
        candidates = (
            batches[0] if len(batches) == 1 else [sample for batch in batches for sample in samples_of(batch)]
        )
        selection = hook.select(candidates).selection
        chosen.append((selection.indices.tolist(), selection.weights.tolist()))
        if way.stage is None:
            own_torch_step(
                hook, model, optimizer, candidates, selection, way.gradient_accumulation_steps, per_device
            )
            continue
        for batch in hook.micro_batches(candidates, selection):
            logits = engine(input_ids=batch.input_ids_BT, use_cache=False).logits
            engine.backward(hook.weighted_loss(logits, batch))
            engine.step()
    parameters = whole(model)
    if way.stage is not None:
        engine.destroy()
    return chosen, parameters


def engine_of(way: Way, model_folder: str, per_device: int):
    """A model, its optimizer, the engine and the hook, made without a Trainer."""
    import deepspeed

    from pipeline.data.batch import samples_of
    from pipeline.data.targets import TargetSet
    from pipeline.hook import SelectionHook
    from pipeline.scoring.engines import TorchEngine

    model = model_of(model_folder, way)
    decay = [p for n, p in model.named_parameters() if p.requires_grad and "norm" not in n]
    rest = [p for n, p in model.named_parameters() if p.requires_grad and "norm" in n]
    groups = [
        group
        for group in ({"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0})
        if group["params"]
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, eps=1e-4, fused=True)
    if way.stage is None:
        engine = TorchEngine(model, optimizer, torch.device("cpu"))
    else:
        config = {
            "zero_optimization": {"stage": way.stage},
            "train_micro_batch_size_per_gpu": per_device,
            "gradient_clipping": 1.0,
            "gradient_accumulation_steps": way.gradient_accumulation_steps,
            "bf16": {"enabled": way.precision == "bf16"},
            "steps_per_print": 10**9,
        }
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    targets = TargetSet(
        [sample for row in examples() for sample in samples_of(collator()([row]))], 3, seed=42
    )
    hook = SelectionHook.attach(engine, targets, settings_of(way), pad_token_id=0, seed=42)
    return model, optimizer, engine, hook


def own_torch_step(hook, model, optimizer, candidates, selection, micro_steps: int, per_device: int) -> None:
    from pipeline.scoring.loss import per_sample_loss
    from pipeline.step.micro_batches import weighted_loss

    model.train()
    for batch in hook.micro_batches(candidates, selection, micro_steps, per_device):
        logits = model(input_ids=batch.input_ids_BT, use_cache=False).logits
        weighted_loss(per_sample_loss(logits, batch.labels_BT), batch.weights_B, 1).backward()
    if hook.collectives.world_size > 1:  # a sum over ranks, so nothing is divided
        for parameter in model.parameters():
            torch.distributed.all_reduce(parameter.grad)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def resumed(ways: list[Way], model_folder: str, folder: str) -> dict[Way, dict]:
    """An undisturbed run, and one that goes on from its checkpoint after 2 of 5 updates, in the middle of an
    epoch; with learned proposals also from the one after 3, where an epoch begins."""
    results = {}
    for way in ways:
        per_device = 4 // world() // way.gradient_accumulation_steps
        output = Path(folder) / str(way)

        def build(selection=None, way=way, output=output, per_device=per_device):
            return selecting(
                model_of(model_folder, way, attention_dropout=0.1),
                arguments(way, output, per_device, save_strategy="steps", save_steps=1, save_total_limit=5),
                selection or settings_of(way),
            )

        def seen(trainer) -> dict:
            return {
                "plans": getattr(trainer, "plans", []),
                "selections": trainer.selections,
                "losses": losses(trainer),
                "parameters": close(trainer),
            }

        trainer = build()
        trainer.train()
        first = seen(trainer)
        results[way] = {}
        for step in (2, 3) if way.learned else (2,):
            trainer = build()
            trainer.train(resume_from_checkpoint=str(output / f"checkpoint-{step}"))
            second = seen(trainer)
            results[way][step] = {
                "plans": (first["plans"][step:], second["plans"]),
                "selections": (first["selections"][step:], second["selections"]),
                "losses": (first["losses"], second["losses"]),
                "differ": [
                    n for n, p in first["parameters"].items() if not torch.equal(p, second["parameters"][n])
                ],
            }
        if way.learned and way.stage is None:
            results[way]["otherwise"] = refused_resume(build(settings()), output)
    return results


def refused_resume(trainer, output: Path) -> str:
    try:
        trainer.train(resume_from_checkpoint=str(output / "checkpoint-2"))
    except ValueError as error:
        return str(error)
    return "no error"


def by_other_loaders(ways: list[Way], model_folder: str, folder: str) -> dict[Way, list]:
    """Plans of a run as it is, with workers, and with a loader that only rank 0 reads."""
    results = {}
    for way in ways:
        results[way] = []
        for options in (
            {},
            {"dataloader_num_workers": 1},
            {"accelerator_config": {"dispatch_batches": True}},
        ):
            per_device = 4 // world() // way.gradient_accumulation_steps
            args = arguments(way, folder, per_device, **options)
            trainer = selecting(model_of(model_folder, way), args, settings_of(way))
            trainer.train()
            results[way].append(trainer.plans)
            close(trainer)
    return results


def on_two_ranks(ways: dict[str, list[Way]], model_folder: str, folder: str) -> dict[str, dict[Way, dict]]:
    compare = {
        "plain": against_plain,
        "own": against_own_loop,
        "resumed": resumed,
        "loaded": by_other_loaders,
    }
    return {name: compare[name](of_name, model_folder, folder) for name, of_name in ways.items()}


REFUSED = (
    {"keep": 8},
    {"candidates": 9},
    {"candidates": 2},
    {"has_targets": False},
    {"score_every": 0},
    {"proposal": "bm25"},
    {"seed_scores": "scores.parquet"},
    {"proposal": "learned", "method": "max_loss"},
    {"proposal": "learned", "is_stream": True},
    {"score_every": 3, "is_stream": True},
    {"proposal": "learned", "num_rows": 6},
    {"label_smoothing_factor": 0.1},
    {"auto_find_batch_size": True},
)


def alone(model_folder: str, folder: str, own: list[Way]) -> dict:
    """One process, with no process group at all."""
    import os

    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    found = {"own": against_own_loop(own, model_folder, folder), "refused": {}}
    for changes in REFUSED:
        found["refused"][str(changes)] = refusal(model_folder, folder, **changes)
    found["evaluation"] = evaluation(model_folder, folder)
    found["asked"] = asked_instead_of_loaded(model_folder, folder)
    found["stream"] = of_a_stream(model_folder, folder)
    found["bounded"] = bounded(model_folder, folder)
    return found


def asked_instead_of_loaded(model_folder: str, folder: str) -> dict:
    """The plain order, every update scored: from the loader, and from a proposer."""
    from unittest import mock

    from pipeline.integrations import proposing

    found = {}
    for name in ("loaded", "asked"):
        trainer = selecting(model_of(model_folder, Way()), arguments(Way(), folder, 2), settings())
        with mock.patch.object(proposing, "proposes", return_value=name == "asked"):
            trainer.train()
        found[name] = (trainer.selections, losses(trainer), close(trainer))
        found["plans"] = getattr(trainer, "plans", [])
    found["differ"] = [
        name for name, value in found["loaded"][2].items() if not torch.equal(value, found["asked"][2][name])
    ]
    return found


def bounded(model_folder: str, folder: str) -> dict:
    """A run whose selection may take next to nothing of the time."""
    selection = settings(proposal="learned", pool_share=0.5, score_every="auto", time_share=1e-9)
    trainer = selecting(model_of(model_folder, Way()), arguments(Way(), folder, 2), selection)
    trainer.train()
    schedule = trainer._proposer.schedule
    return {
        "scored": [is_scored for is_scored, *_ in trainer.plans],
        "seconds": (schedule.selection_seconds, schedule.total_seconds),
        "runtime": trainer.state.log_history[-1]["train_runtime"],
    }


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield from pool()


def of_a_stream(model_folder: str, folder: str) -> list:
    """What is chosen from a stream by default."""
    selection = settings(proposal="auto", score_every="auto")
    args = arguments(Way(), folder, 2, max_steps=2)
    trainer = selecting(model_of(model_folder, Way()), args, selection, train_dataset=Stream())
    trainer.train()
    close(trainer)
    return [entry["selection_cosine"] for entry in trainer.state.log_history if "loss" in entry]


OF_SELECTION = {"keep": "keep_per_step", "candidates": "candidates_per_step"} | {
    name: name for name in ("score_every", "proposal", "method", "seed_scores")
}


def refusal(
    model_folder: str,
    folder: str,
    has_targets: bool = True,
    is_stream: bool = False,
    num_rows: int = NUM_SAMPLES,
    **options,
) -> str:
    selection = settings(
        **{name: options.pop(given) for given, name in OF_SELECTION.items() if given in options}
    )
    try:
        args = arguments(Way(), folder, 2, **options)
        given = {"train_dataset": Stream() if is_stream else pool()[:num_rows]}
        given["target_dataset"] = examples() if has_targets else None
        selecting(model_of(model_folder, Way()), args, selection, **given)
    except ValueError as error:
        return str(error)
    return "no error"


def evaluation(model_folder: str, folder: str) -> dict:
    """Evaluation with and without selection, callbacks of two updates, and the epochs that an epoch of
    training counts."""
    from transformers import Trainer, TrainerCallback

    events = []

    class Record(TrainerCallback):
        def on_step_begin(self, *_, **__):
            events.append("step_begin")

        def on_substep_end(self, *_, **__):
            events.append("substep_end")

        def on_step_end(self, *_, **__):
            events.append("step_end")

    options = dict(eval_dataset=examples(), callbacks=[Record()])
    trainer = selecting(
        model_of(model_folder, Way()), arguments(Way(), folder, 2, max_steps=2), settings(), **options
    )
    trainer.train()
    eval_loss = trainer.evaluate()["eval_loss"]
    assert trainer.predict(pool()).predictions.shape[0] == NUM_SAMPLES
    args = arguments(Way(), folder, 2)
    plain = Trainer(
        model=trainer.model, args=args, eval_dataset=examples(), data_collator=collator()
    ).evaluate()["eval_loss"]
    args = arguments(Way(), folder, 2, max_steps=-1, num_train_epochs=1, logging_steps=100)
    trainer = selecting(model_of(model_folder, Way()), args, settings())
    trainer.train()
    assert trainer.state.global_step == 3
    epochs = [entry["epoch"] for entry in trainer.state.log_history if "train_runtime" in entry]
    return {"eval_loss": eval_loss, "plain": plain, "events": events, "epochs": epochs}


def sft(model_folder: str, folder: str) -> dict:
    """TRL's trainer with all candidates at uniform weights against the plain one on the mean of the samples;
    and what it refuses."""
    import os

    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from pipeline.integrations.trainer import SelectionMixin
    from tests.conftest import tokenizer

    class SelectionSFTTrainer(SelectionMixin, SFTTrainer):
        pass

    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    trainer = mean_of_samples(model_of(model_folder, Way()), arguments(Way(), folder, 4))
    begin = whole(trainer.model)
    trainer.train()
    plain, plain_losses = whole(trainer.model), losses(trainer)

    def build(selection=None, **options):
        start_afresh()
        args = SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=4,
            learning_rate=LR,
            weight_decay=0.1,
            adam_epsilon=1e-4,
            max_steps=STEPS,
            gradient_accumulation_steps=2,
            lr_scheduler_type="linear",
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
            bf16=False,
            gradient_checkpointing=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            **options,
        )
        return SelectionSFTTrainer(
            model_of(model_folder, Way()),
            args,
            processing_class=tokenizer(),
            train_dataset=Dataset.from_list(pool()),
            target_dataset=Dataset.from_list(examples()),
            selection=selection or settings(method="full"),
        )

    trainer = build()
    trainer.train()
    trained = whole(trainer.model)
    learning = build(replace(settings_of(Way(learned=True)), candidates_per_step=16, keep_per_step=8))
    learning.train()
    try:
        build(packing=True, max_length=32)
        packing = "no error"
    except ValueError as error:
        packing = f"ValueError: {error}"
    return {
        "losses": losses(trainer),
        "plain losses": plain_losses,
        "packing": packing,
        "learning": [
            (entry["selection_scored"], entry["selection_kept"])
            for entry in learning.state.log_history
            if "loss" in entry
        ],
        "parameters": {
            n: ((trained[n] - plain[n]).abs().max().item(), (plain[n] - begin[n]).abs().max().item())
            for n in plain
        },
    }
