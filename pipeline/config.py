"""Every setting of a run, with its unit and the reason for its default; parsing, and checks without a model.

``python -m pipeline.train --help`` is generated from this file. Sources, strongest first:
``--section.key value``, ``--config recipe.yaml``, the defaults below. Unknown keys are errors.
"""

import os
from argparse import ArgumentError
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Literal, Optional, Union

import yaml
from jsonargparse import (
    SUPPRESS,
    ActionConfigFile,
    ArgumentParser,
    Namespace,
    set_loader,
    set_parsing_settings,
)

from pipeline import durable
from pipeline.geometry import GEOMETRIES, UPDATE, Geometry
from pipeline.selection import registry
from pipeline.settings import PRESETS, RECIPES, TEMPLATES
from pipeline.yaml_text import load_yaml

# Settings are values: none may name a class, which jsonargparse would import and make.
set_parsing_settings(
    docstring_parse_attribute_docstrings=True,
    import_path_denylist=["*"],
    instantiate_subclass_spec_in_any=False,
)
set_loader("yaml", load_yaml, exceptions=(yaml.YAMLError,))

RANKINGS = ("bm25", "tfidf", "dsir", "rds", "fit", "oracle")
"""Rankings of a whole pool, each a file in pipeline/proposal/rankings/."""
Backend = Literal["exact", "projected", "factored"]
LARGEST = 2**31 - 1  # of whole numbers
DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
CHANGE_NO_RESULT = (
    "resume",
    "run.folder",
    "run.overwrite",
    "run.timeout_seconds",
    "run.save_model",
    "data.cache_folder",
    "training.save_every",
    "training.keep_last",
    "training.keep_every",
    "training.verify_every",
)
"""Settings of the place and safety of a run, which change nothing in its outcome."""


@dataclass
class ModelConfig:
    """The model that is fine-tuned."""

    name: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    """A local folder, a hub name, or demo: a model of 2 million parameters that is made here in a minute
    (pipeline/training/small_model.py)."""
    revision: Optional[str] = None
    """Commit or tag of a hub model."""
    trust_remote_code: bool = False
    """Run Python code that comes with a hub model."""
    chat_template: Optional[str] = None
    """File with a Jinja chat template in place of the tokenizer's, or tulu; base models have no template."""
    attention: Literal[
        "auto", "flash_attention_4", "flash_attention_3", "flash_attention_2", "sdpa", "eager"
    ] = "auto"
    """Attention kernel; auto takes the best flash-attn that is installed and fits the card, else PyTorch's
    flash SDPA."""
    packing: Union[Literal["auto"], bool] = "auto"
    """Put samples of a micro-batch one behind the other in one row instead of padding them to the longest.
    auto does so where a flash-attn package runs; other kernels take a mask over the whole row, which costs
    more than padding does where samples are alike in length."""
    gradient_checkpointing: bool = False
    """Recompute activations in the training backward (non-reentrant), to save memory."""
    lora_rank: int = 16
    """Rank of the LoRA adapters; 0 fine-tunes all parameters."""
    lora_alpha: int = 32
    """LoRA scale; the adapter's output is multiplied by lora_alpha / lora_rank."""
    lora_targets: Union[str, list[str]] = "all-linear"
    """Modules that get an adapter, in peft's notation."""


@dataclass
class DataConfig:
    """The data: candidates, target examples, held-out samples, and how all of them become tokens."""

    pool: list[str] = field(default_factory=list)
    """Candidate samples: .jsonl, .json, .csv, .tsv or .parquet files, or Hugging Face datasets
    ('name:configuration:split', 'stream:name': docs/data.md); 'demo:pool', 'demo:target' and 'demo:test' are
    what pipeline.data.demo writes."""
    pool_weights: Optional[list[float]] = None
    """Relative shares of the candidates, one positive number for each name in pool; without them each name
    has the share of its size. The order stays a function of run.seed and the step, and no sample of a name
    comes twice before all of its samples have come once."""
    target: list[str] = field(default_factory=list)
    """A few examples of the task that the model should learn, in the same formats; read whole at start."""
    test: list[str] = field(default_factory=list)
    """Held-out samples whose loss is measured before, during and after training; they have no part in
    training and selection."""
    columns: dict[str, str] = field(default_factory=dict)
    """Other names that files have for the fields of a sample, {question: prompt, answer: completion}; they
    hold for pool, target and test."""
    max_tokens: int = 512
    """Longest sample, in tokens."""
    on_long: Literal["truncate", "drop"] = "truncate"
    """Fate of longer samples; both are counted in the log."""
    on_broken: Literal["error", "skip"] = "error"
    """Fate of a line that cannot be read: error ends the run and names its file and line number, skip leaves
    it out and counts it."""
    loss_on: Literal["assistant", "all"] = "assistant"
    """Supervised tokens: the assistant's (the completion's), or every token."""
    rotate_targets: bool = True
    """Go through all target samples in turn; false takes the same selection.target_per_step of them at every
    step."""
    cache_folder: str = "auto"
    """Folder of tokenised samples: the next start with the same files, tokenizer and settings reads them
    instead of tokenising. auto is filter_then_weight in Hugging Face's cache (HF_HOME, or
    ~/.cache/huggingface). Each node writes its own, or all share one. '' keeps nothing: every start
    tokenises, to a temporary file (in TMPDIR)."""


@dataclass
class SelectionConfig:
    """The choice of candidates at each step, and their weights."""

    method: Literal[tuple(registry.METHODS)] = "filter_then_weight"  # type: ignore[valid-type]  # names known at import alone
    """Selection method; pipeline/selection/ has a file for each, with its source and the departures from it.
    full trains on all candidates, random keeps a seeded uniform draw; max_loss and rho_loss take a forward of
    the candidates, grad_norm a backward too, the others the Gram."""
    candidates_per_step: int = 16
    """Candidates of one step, over all ranks (C)."""
    keep_per_step: int = 8
    """Candidates that one step keeps for its update, over all ranks (K), at most as many."""
    target_per_step: int = 4
    """Target samples whose mean gradient is matched in one step, over all ranks; the set is taken in turn."""
    geometry: Literal[tuple(["auto", *GEOMETRIES])] = "auto"  # type: ignore[valid-type]  # names known at import alone
    """Space of the match: Adam's update D g (update), D^1/2 g (curvature), the raw gradient g (identity), or
    D g of candidates against g of the target (update_to_gradient). auto is the method's own (grad_norm,
    grad_dot, grad_match, greats: identity; less, opus: update_to_gradient; another is refused), else
    update."""
    momentum: Literal["cancel", "compensate"] = "cancel"
    """Part of momentum in the match. cancel: none, since both sides have the same. compensate: momentum and
    selection together make the target's plain step; for methods without a geometry of their own."""
    ridge: float = 1.0
    """Shrinkage of the weights toward uniform (grad_match: toward none), in units of the mean squared row
    norm; 0 is plain NNLS, .inf uniform weights."""
    temperature: float = 0.9
    """Temperature of the draws of opus, in units of the loss; lower is greedier. Utilities grow with the
    learning rate."""
    reference_model: Optional[str] = None
    """Reference of rho_loss, a model trained on held-out data with the tokenizer of model.name: a folder (of
    a model or of an adapter) or a hub name. Every rank holds all of it, whatever the ZeRO stage."""
    warmup_steps: int = 4
    """First steps in which methods that measure with Adam's moments match the plain gradient instead: moments
    of so few updates are no metric. At least 2 with LoRA: lora_A has no gradient in the very first update."""
    proposal: Literal[tuple(["auto", "uniform", "learned", "target", *RANKINGS])] = "auto"  # type: ignore[valid-type]  # names known at import alone
    """Which samples of the pool a step gets. uniform: the next ones in a seeded order. learned: of the next
    ones the best predicted, by similarity to the target examples and by what scored steps have observed
    (pipeline/proposal/learned.py). bm25, tfidf, dsir, rds, fit, oracle: the best of a ranking that is made
    before the run, in a seeded order (pipeline/proposal/rankings/). target: the target examples themselves.
    auto is learned where a Gram is formed, else uniform."""
    prior: bool = True
    """Let learned begin with the similarity to the target examples; false begins with nothing."""
    seed_scores: Optional[str] = None
    """Scores of data.pool that learned begins with: a folder that pipeline.score has written, or a Parquet
    file with its columns; samples are matched by source and id (docs/scoring.md)."""
    pool_share: Union[Literal["auto"], float] = "auto"
    """Share of the pool that learned and the rankings train on: learned takes n of a window of n /
    pool_share. auto takes the samples that stand apart as similar to the target examples, and as many as
    keep a sample from being trained on more than four times on average (pipeline/proposal/width.py)."""
    score_every: Union[Literal["auto"], int] = "auto"
    """Steps from one that scores candidates to the next; those between train on what the proposal gives, at
    equal weights. auto spaces them by what scoring has been seen to yield
    (pipeline/proposal/schedule.py); where nothing tells (momentum: compensate, geometry: update_to_gradient,
    one target example a step) every 8th step scores, and without a Gram every step."""
    time_share: Optional[float] = None
    """Most of the training time that selection may take, with score_every: auto, as measured on rank 0: runs
    then differ with the clock. None sets no bound."""
    scoring_micro_batch_size: int = 0
    """Samples per rank in one forward of the scoring pass; 0 scores the rank's share in one, streaming layer
    by layer. Smaller passes need less memory for activations (and less padding, being sorted by length), but
    their results wait for the last one: for each waiting sample and layer the gradient or its factors,
    whichever is smaller. That is little with LoRA, and much in full fine-tuning."""
    backend: Backend = "exact"
    """Source of the Gram matrix. exact: every per-sample gradient, under Adam's metric. projected: random
    features of these gradients, under Adam's metric. factored: random features without any per-sample
    gradient, under a rank-1 approximation of the metric."""
    projection_size: int = 32
    """Rows and columns that projected and factored leave of a layer's gradient; larger is closer to exact and
    costs more."""
    contraction: Literal["auto", "materialise", "row_chunks", "token_token"] = "auto"
    """Way in which exact forms inner products of gradients, layer by layer: from whole gradients, from a few
    of their rows at a time, or from inner products of tokens (identity geometry only). auto counts operations
    and keeps to exchange_mib."""
    last_blocks: int = 0
    """Score only this many of the model's last blocks: the scoring backward stops there. 0 scores all."""
    logits_mib: int = 1024
    """Largest float32 logits of a scoring pass, in MiB (on CPU at most 30): they are formed in chunks, and of
    supervised tokens alone. 0 forms all of them at once."""
    exchange_mib: int = 64
    """Largest buffer that a rank sends or receives in one exchange of per-sample gradients, in MiB."""

    @property
    def compensates_momentum(self) -> bool:
        """Whether momentum is part of what is matched."""
        return self.momentum == "compensate"


@dataclass
class TrainingConfig:
    """The weighted step and its optimizer; batch sizes are written here once and derived in the DeepSpeed
    configuration."""

    steps: int = 100
    """Optimizer steps."""
    target_mix: float = 0.0
    """Share of keep_per_step that are target examples, taken in turn, and of the update's weight; 0.25 is one
    in four."""
    micro_batch_size: int = 4
    """Kept samples per rank in one forward and backward; gradient accumulation follows from keep_per_step."""
    learning_rate: float = 2e-4
    """Peak learning rate of AdamW."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """Learning rate after warm-up; linear and cosine end at 0."""
    learning_rate_warmup_steps: int = 0
    """Steps of linear warm-up of the learning rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of exp_avg and exp_avg_sq."""
    eps: float = 1e-8
    """Number that is added to the root of the second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay (not on norms and biases)."""
    gradient_clipping: float = 1.0
    """Largest gradient norm; 0 turns clipping off."""
    adam: Literal["torch", "deepspeed"] = "torch"
    """torch.optim.AdamW needs no build; deepspeed takes FusedAdam, or DeepSpeedCPUAdam with optimizer
    offload, which a C++ compiler builds at first use."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Number format of the model. auto is bf16 on GPUs and fp32 on CPU, so that the files in ds_configs/ run
    on both. fp16, for cards without bf16, comes with DeepSpeed's dynamic loss scale: a step whose gradient
    overflows is skipped and recorded."""
    evaluate_every: int = 0
    """Steps between measurements of the held-out loss; 0 measures only before and after."""
    evaluation_micro_batch_size: int = 16
    """Samples per rank in one forward of an evaluation."""
    evaluation_answers: int = 0
    """Held-out prompts, the first of data.test, that the final model answers greedily; their exact-match
    accuracy is recorded. An answer may become as long as the longest reference among them. 0 asks none."""
    save_every: int = 500
    """Steps between checkpoints; 0 writes one only when the run is asked to stop (SIGTERM, SIGUSR1)."""
    keep_last: int = 2
    """Newest checkpoints that are kept; 0 keeps all. Two, so that there is another if the newest turns out to
    be damaged."""
    keep_every: int = 0
    """Checkpoints at multiples of this many steps are kept for good; 0 keeps none of them."""
    verify_every: int = 100
    """Steps between comparisons of all parameters over ranks, bit by bit (ZeRO 0 to 2, where each rank has a
    copy); 0 never compares."""


@dataclass
class RunConfig:
    """The folder of the results, and what holds for the whole run."""

    folder: str = "runs/latest"
    """Folder of the results: resolved configuration, step records, kept samples, evaluations, checkpoints,
    final model. It must be empty or new, unless resume continues what is there. Several nodes need it on a
    file system that they share."""
    overwrite: bool = False
    """Empty the folder first if it holds an earlier run."""
    seed: int = 0
    """Seed of candidate order, target rotation, random selection and new weights."""
    timeout_seconds: int = 600
    """Seconds for which a rank waits for another before it ends the run on all ranks. While samples are
    tokenised, which may take hours, they count from the last sign that the work goes on."""
    save_model: bool = True
    """Write the final adapter or model as safetensors."""


@dataclass
class Config:
    """Settings of one run."""

    deepspeed: str = "zero2"
    """DeepSpeed configuration: partitioning, offload, monitors. A file, or the name of one that comes with
    the program (ds_configs/)."""
    resume: Optional[str] = None
    """auto continues the run in run.folder from its newest good checkpoint, and starts it where it has none:
    the same command starts and restarts a job. A path continues that checkpoint, or the run in that folder,
    in run.folder."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    run: RunConfig = field(default_factory=RunConfig)


class RecipeFile(ActionConfigFile):
    """``--config``: a file, or the name of a recipe that comes with the program."""

    def __call__(self, parser, cfg, values, option_string=None):
        super().__call__(parser, cfg, RECIPES.find(values), option_string)


def build_parser(description: str) -> ArgumentParser:
    parser = ArgumentParser(
        description=description,
        allow_abbrev=False,
        usage="%(prog)s --config recipe.yaml [--section.key value ...]",
    )
    parser.add_argument(
        "--config", action=RecipeFile, help="YAML file with the settings below, or a recipe: lora"
    )
    parser.add_class_arguments(Config, as_group=False)
    parser.add_argument("--local_rank", type=int, default=0, help=SUPPRESS)  # the deepspeed launcher adds it
    return parser


def parse(description: str, arguments: Optional[list[str]] = None) -> Config:
    """The configuration of a command line.

    An unknown key, a wrong type or a contradiction ends the program with code 2 and one sentence.
    """
    return parse_with(build_parser(description), arguments)[0]


def parse_with(
    parser: ArgumentParser, arguments: Optional[list[str]] = None, needs_data: bool = True
) -> tuple[Config, Namespace]:
    """The configuration, and a namespace with the arguments that a program has added to ``build_parser``.

    Errors are those of ``parse``. ``needs_data=False`` is for programs that read no samples: ``data`` may
    then be empty or name files that are not there yet.
    """
    namespace = parse_arguments(parser, arguments)
    try:
        config = _from_namespace(parser, namespace)
        check_settings(config)
        if needs_data:
            check_data(config)
    except ValueError as error:
        parser.error(str(error))
    resolve(config)
    return config, namespace


def parse_arguments(parser: ArgumentParser, arguments: Optional[list[str]] = None) -> Namespace:
    """The result of ``parser.parse_args``.

    Files that are no UTF-8 and settings that name a class, too, end the program with code 2 and a sentence.
    """
    try:
        return parser.parse_args(arguments)
    except UnicodeDecodeError as error:
        parser.error(f"the --config file is no UTF-8: {error.reason} at byte {error.start + 1}")
    except (ImportError, TypeError) as error:
        parser.error(str(error))


def resolve(config: Config) -> None:
    """Fill in what the settings leave open, so that the saved copy says what is done."""
    config.selection.proposal = resolved_proposal(config.selection)
    if registry.get(config.selection.method).takes_backward:
        config.selection.geometry = geometry(config.selection).name


def save(config: Config, path: Path) -> None:
    """Write the resolved configuration as YAML; ``--config path`` reads it back."""
    durable.write_text(path, yaml.safe_dump(plain(config), sort_keys=False))


def load(path: Path) -> Config:
    """Read a configuration that ``save`` wrote."""
    parser = build_parser("")
    return _from_namespace(parser, parser.parse_args(["--config", str(path)]))


def geometry(selection: SelectionConfig) -> Geometry:
    """The space of the match. Raises ValueError where the method has its own and the settings contradict."""
    own = registry.get(selection.method).geometry
    if own is None:
        return UPDATE if selection.geometry == "auto" else GEOMETRIES[selection.geometry]
    if selection.geometry not in ("auto", own):
        raise ValueError(
            f"selection.geometry = {selection.geometry} contradicts selection.method = {selection.method}, "
            f"which works in {own}: leave it at auto"
        )
    if selection.momentum != "cancel":
        raise ValueError(
            f"selection.momentum = {selection.momentum} contradicts selection.method = {selection.method}, "
            "which has a target of its own: set it to cancel"
        )
    return GEOMETRIES[own]


def needs_moments(selection: SelectionConfig) -> bool:
    """Whether candidates are measured with Adam's state, which the first steps do not have."""
    reads_moments = geometry(selection).needs_moments or selection.compensates_momentum
    return registry.get(selection.method).needs_target and reads_moments


def from_settings(settings: dict) -> Config:
    """Configuration of nested or dotted settings over the defaults.

    Raises ValueError naming an unknown key or a wrong type.
    """
    parser = build_parser("")
    parser.exit_on_error = False
    try:
        return _from_namespace(parser, parser.parse_object(_with_columns(settings)))
    except (ArgumentError, ImportError, TypeError) as error:
        raise ValueError(" ".join(str(error).split())) from error


def plain(config: Config) -> dict:
    """Nested settings in YAML's types, for ``save`` and ``from_settings``."""
    return _plain(asdict(config))


def check(config: Config) -> None:
    """Refuse contradictions that can be seen without a model. Raises ValueError naming the settings."""
    check_settings(config)
    check_data(config)


def check_settings(config: Config) -> None:
    """Refuse contradictions that can be seen without the data. Raises ValueError naming the settings."""
    s, t = config.selection, config.training
    for section, name, smallest in (
        (s, "candidates_per_step", 1),
        (s, "keep_per_step", 1),
        (s, "target_per_step", 1),
        (s, "ridge", 0),
        (s, "warmup_steps", 0),
        (s, "scoring_micro_batch_size", 0),
        (s, "exchange_mib", 1),
        (s, "projection_size", 1),
        (s, "last_blocks", 0),
        (s, "logits_mib", 0),
        (t, "steps", 1),
        (t, "target_mix", 0),
        (t, "micro_batch_size", 1),
        (t, "learning_rate_warmup_steps", 0),
        (t, "weight_decay", 0),
        (t, "gradient_clipping", 0),
        (t, "evaluate_every", 0),
        (t, "evaluation_micro_batch_size", 1),
        (t, "evaluation_answers", 0),
        (t, "save_every", 0),
        (t, "keep_last", 0),
        (t, "keep_every", 0),
        (t, "verify_every", 0),
        (config.model, "lora_rank", 0),
        (config.data, "max_tokens", 2),
        (config.run, "timeout_seconds", 1),
        (config.run, "seed", 0),
    ):
        value = getattr(section, name)
        if not value >= smallest:
            raise ValueError(f"{_section(section)}.{name} is {value}: the smallest value is {smallest}")
        if isinstance(value, int) and value > LARGEST:
            raise ValueError(f"{_section(section)}.{name} is more than the largest value, {LARGEST}")
    if not s.temperature > 0:
        raise ValueError(f"selection.temperature is {s.temperature}: it must be positive")
    needs_reference = registry.get(s.method).needs_reference
    if needs_reference != (s.reference_model is not None):
        raise ValueError(
            f"selection.reference_model is missing: selection.method = {s.method} compares losses with it"
            if needs_reference
            else f"selection.reference_model = {s.reference_model} has no meaning with selection.method = "
            f"{s.method}: remove it"
        )
    for name in ("learning_rate", "eps"):
        if not 0 < getattr(t, name) < float("inf"):
            raise ValueError(f"training.{name} is {getattr(t, name)}: it must be positive and finite")
    if not all(0 <= beta < 1 for beta in t.betas):
        raise ValueError(f"training.betas is {t.betas}: both must lie in [0, 1)")
    if s.keep_per_step > s.candidates_per_step:
        raise ValueError(
            f"selection.keep_per_step = {s.keep_per_step} is more than selection.candidates_per_step = "
            f"{s.candidates_per_step}: lower one or raise the other"
        )
    check_proposal(s)
    if not t.target_mix < 1:
        raise ValueError(
            f"training.target_mix is {t.target_mix}: it must be below 1; selection.proposal = target trains "
            "on target examples alone"
        )
    if t.target_mix and resolved_proposal(s) == "target":
        raise ValueError(
            f"training.target_mix = {t.target_mix} has no meaning with selection.proposal = target, which "
            "trains on target examples alone: leave it out"
        )
    if t.target_mix and s.method == "full":
        raise ValueError(
            f"training.target_mix = {t.target_mix} has no meaning with selection.method = full, which trains "
            "on every candidate: leave it out"
        )
    if t.target_mix and num_mixed(config) in (0, samples_per_step(config)):
        raise ValueError(
            f"training.target_mix = {t.target_mix} of {samples_per_step(config)} samples is "
            f"{num_mixed(config)} of them: at least one must come from the pool and one from the target"
        )
    if needs_moments(s) and s.warmup_steps >= t.steps:
        raise ValueError(
            f"selection.warmup_steps = {s.warmup_steps} leaves nothing of training.steps = {t.steps} to "
            f"selection.method = {s.method}"
        )
    if t.learning_rate_warmup_steps >= t.steps:
        raise ValueError(
            f"training.learning_rate_warmup_steps = {t.learning_rate_warmup_steps} never ends within "
            f"training.steps = {t.steps}"
        )
    if s.contraction != "auto" and s.backend != "exact":
        raise ValueError(
            f"selection.contraction = {s.contraction} has no meaning with selection.backend = {s.backend}, "
            "which forms no inner product of whole gradients: leave it at auto"
        )
    if t.evaluation_answers and config.data.loss_on == "all":
        raise ValueError(
            f"training.evaluation_answers = {t.evaluation_answers} needs to know where answers begin, which "
            "data.loss_on = all does not tell: set it to assistant, or ask for no answers"
        )
    if t.keep_every and (t.save_every == 0 or t.keep_every % t.save_every):
        raise ValueError(
            f"training.keep_every = {t.keep_every} is no multiple of training.save_every = {t.save_every}: "
            "nothing would be there to keep"
        )
    if config.resume is not None and config.run.overwrite:
        raise ValueError(
            f"resume = {config.resume} continues what run.overwrite would delete: set one of them"
        )
    if config.resume not in (None, "auto") and not os.path.isdir(config.resume):
        raise ValueError(
            f"resume: there is no folder {config.resume}; name a checkpoint or a run's folder, or auto"
        )
    if not os.path.isfile(PRESETS.find(config.deepspeed)):
        known = ", ".join(PRESETS.names())
        raise ValueError(f"deepspeed: there is no file {config.deepspeed}; by name there are {known}")
    if config.model.chat_template and not os.path.isfile(TEMPLATES.find(config.model.chat_template)):
        raise ValueError(f"model.chat_template: there is no file {config.model.chat_template}")


def check_proposal(s: SelectionConfig) -> None:
    """Refuse contradictions among the settings of what is proposed and when it is scored.

    Raises ValueError naming the settings.
    """
    method = registry.get(s.method)
    if s.score_every != "auto":
        if s.score_every < 1:
            raise ValueError(f"selection.score_every is {s.score_every}: the smallest value is 1")
        if s.score_every > 1 and not method.looks_at_candidates:
            raise ValueError(
                f"selection.score_every = {s.score_every} has no meaning with selection.method = {s.method}, "
                "which scores nothing: leave it at auto"
            )
        if s.time_share is not None:
            raise ValueError(
                f"selection.time_share = {s.time_share} bounds what selection.score_every = auto takes, and "
                f"that is {s.score_every}: remove one of them"
            )
    if s.time_share is not None and not method.looks_at_candidates:
        raise ValueError(
            f"selection.time_share = {s.time_share} has no meaning with selection.method = {s.method}, which "
            "scores nothing: leave it out"
        )
    for name in ("pool_share", "time_share"):
        value = getattr(s, name)
        if value not in ("auto", None) and not 0 < value <= 1:
            raise ValueError(f"selection.{name} is {value}: it must be above 0 and at most 1")
    proposal = resolved_proposal(s)
    if proposal == "learned" and not method.needs_target:
        raise ValueError(
            f"selection.proposal = learned learns from a Gram, and selection.method = {s.method} forms none: "
            "take uniform or a ranking"
        )
    if s.pool_share != "auto" and proposal in ("uniform", "target"):
        raise ValueError(
            f"selection.pool_share = {s.pool_share} has no meaning with selection.proposal = {proposal}, "
            "which takes every sample: leave it at auto"
        )
    if not s.prior and proposal != "learned":
        raise ValueError(
            f"selection.prior = {s.prior} has no meaning with selection.proposal = {proposal}: leave it out"
        )
    if s.seed_scores is not None and proposal != "learned":
        raise ValueError(
            f"selection.seed_scores = {s.seed_scores} has no meaning with selection.proposal = {proposal}, "
            "which learns nothing: leave it out"
        )


def check_data(config: Config) -> None:
    """Refuse settings without the data that the run needs. Raises ValueError naming the setting."""
    if not config.data.pool:
        raise ValueError("data.pool is empty: name at least one file or dataset")
    weights = config.data.pool_weights
    if weights is not None and len(weights) != len(config.data.pool):
        raise ValueError(
            f"data.pool_weights has {len(weights)} numbers and data.pool {len(config.data.pool)} names: give "
            "one for each name, in order"
        )
    for weight, name in zip(weights or [], config.data.pool):
        if not 0 < weight < float("inf"):
            raise ValueError(
                f"data.pool_weights gives {name} {weight}: it must be positive and finite; leave out of "
                "data.pool what is not wanted"
            )
    if config.training.evaluation_answers and not config.data.test:
        raise ValueError(
            f"data.test is empty, and training.evaluation_answers = {config.training.evaluation_answers} "
            "needs prompts"
        )
    method, proposal = config.selection.method, resolved_proposal(config.selection)
    for needs_target, setting in (
        (registry.get(method).needs_target, f"selection.method = {method}"),
        (proposal != "uniform", f"selection.proposal = {proposal}"),
        (config.training.target_mix > 0, f"training.target_mix = {config.training.target_mix}"),
    ):
        if needs_target and not config.data.target:
            raise ValueError(f"data.target is empty, and {setting} needs examples to aim at")
    scores = config.selection.seed_scores
    if scores is not None and not os.path.exists(scores):
        raise ValueError(f"selection.seed_scores: there is nothing at {scores}")
    for setting, names in (
        ("data.pool", config.data.pool),
        ("data.target", config.data.target),
        ("data.test", config.data.test),
    ):
        for name in names:
            if Path(name).suffix in DATA_SUFFIXES and not os.path.isfile(name):
                raise ValueError(f"{setting}: there is no file {name}")


def resolved_proposal(selection: SelectionConfig) -> str:
    """The proposal that ``auto`` stands for, or the one that is set."""
    if selection.proposal != "auto":
        return selection.proposal
    return "learned" if registry.get(selection.method).needs_target else "uniform"


def num_mixed(config: Config) -> int:
    """Target examples among the samples of one optimizer step."""
    return round(config.training.target_mix * samples_per_step(config))


def samples_per_step(config: Config) -> int:
    """Samples of one optimizer step, over all ranks."""
    full = config.selection.method == "full"
    return config.selection.candidates_per_step if full else config.selection.keep_per_step


def check_world_size(config: Config, world_size: int) -> int:
    """Gradient accumulation steps on ``world_size`` ranks. Raises ValueError where settings do not divide."""
    s, t = config.selection, config.training
    if s.candidates_per_step % world_size:
        raise ValueError(
            f"selection.candidates_per_step = {s.candidates_per_step} is not divisible by {world_size} "
            "ranks: each rank scores an equal share; the next multiple is "
            f"{-(-s.candidates_per_step // world_size) * world_size}"
        )
    per_micro_step = world_size * t.micro_batch_size
    trained = samples_per_step(config)
    if trained % per_micro_step:
        setting = "selection.candidates_per_step" if s.method == "full" else "selection.keep_per_step"
        raise ValueError(
            f"{setting} = {trained} is not divisible by world size x training.micro_batch_size = "
            f"{world_size} x {t.micro_batch_size}: change one of the three"
        )
    return trained // per_micro_step


def _from_namespace(parser: ArgumentParser, namespace) -> Config:
    """The configuration in a parsed ``namespace``. Raises ValueError where a section is no mapping."""
    for part in fields(Config):
        if is_dataclass(part.type) and not isinstance(namespace[part.name], Namespace):
            raise ValueError(
                f"{part.name} is {namespace[part.name]!r}: a section holds settings, as in {part.name}.key: "
                "value"
            )
    built = parser.instantiate(namespace)
    return Config(**{f.name: getattr(built, f.name) for f in fields(Config)})


def _with_columns(settings: dict) -> dict:
    """Settings with ``data.columns`` as one mapping, whose keys are no names of settings.

    Dotted settings have it key by key: 'data.columns.question: prompt'.
    """
    found, columns = {}, {}
    for name, value in settings.items():
        if str(name).startswith("data.columns."):
            columns[name.removeprefix("data.columns.")] = value
        elif name == "data.columns" and isinstance(value, dict):
            columns = dict(value)
        else:
            found[name] = value
    return {**found, "data.columns": columns} if columns else found


def _section(section) -> str:
    return type(section).__name__.removesuffix("Config").lower()


def _plain(value):
    """``value`` with lists for tuples, which YAML does not know."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
