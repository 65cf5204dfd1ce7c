"""Settings: unknown keys, wrong types and contradictions end the program with code 2 and a sentence; the rest
reads back as written."""

import sys
from dataclasses import asdict

import pytest
import yaml

from pipeline import config
from pipeline.config import Config


@pytest.fixture
def valid(data_folder):
    return [
        "--data.pool",
        f"[{data_folder}/pool.jsonl]",
        "--data.target",
        f"[{data_folder}/target.jsonl]",
        "--deepspeed",
        "ds_configs/zero2.json",
    ]


REFUSED = {
    "unknown key": (["--selection.keep", "3"], "selection.keep"),
    "unknown section": (["--sel.keep_per_step", "3"], "sel.keep_per_step"),
    "wrong type": (["--training.steps", "many"], "training.steps"),
    "temperature of zero": (["--selection.temperature", "0"], "selection.temperature is 0.0"),
    "another geometry": (
        ["--selection.method", "greats", "--selection.geometry", "update"],
        "selection.geometry = update contradicts selection.method = greats, which works in identity: leave "
        "it at auto",
    ),
    "momentum of its own": (
        ["--selection.method", "less", "--selection.momentum", "compensate"],
        "selection.momentum = compensate contradicts selection.method = less",
    ),
    "no reference": (["--selection.method", "rho_loss"], "selection.reference_model is missing"),
    "useless reference": (
        ["--selection.reference_model", "somewhere"],
        "has no meaning with selection.method = filter_then_weight",
    ),
    "nothing but warm-up": (
        ["--selection.method", "less", "--training.steps", "4"],
        "leaves nothing of training.steps = 4",
    ),
    "unknown method": (["--selection.method", "best"], "selection.method"),
    "keep more than candidates": (
        ["--selection.keep_per_step", "40"],
        "selection.keep_per_step = 40 is more than selection.candidates_per_step = 16",
    ),
    "score_every without scores": (
        ["--selection.method", "full", "--selection.score_every", "2"],
        "selection.score_every = 2 has no meaning with selection.method = full, which scores nothing",
    ),
    "no steps between scores": (
        ["--selection.score_every", "0"],
        "score_every is 0: the smallest value is 1",
    ),
    "a bound on a fixed number": (
        ["--selection.score_every", "4", "--selection.time_share", "0.2"],
        "selection.time_share = 0.2 bounds what selection.score_every = auto takes, and that is 4",
    ),
    "more than all time": (
        ["--selection.time_share", "1.5"],
        "selection.time_share is 1.5: it must be above",
    ),
    "none of the pool": (["--selection.pool_share", "0"], "selection.pool_share is 0.0: it must be above 0"),
    "learning without observations": (
        ["--selection.method", "random", "--selection.proposal", "learned"],
        "selection.proposal = learned learns from a Gram, and selection.method = random forms none",
    ),
    "a share of what is taken whole": (
        ["--selection.proposal", "uniform", "--selection.pool_share", "0.5"],
        "selection.pool_share = 0.5 has no meaning with selection.proposal = uniform",
    ),
    "no prior for a ranking": (
        ["--selection.proposal", "bm25", "--selection.prior", "false"],
        "selection.prior = False has no meaning with selection.proposal = bm25",
    ),
    "nothing but target examples": (["--training.target_mix", "1"], "training.target_mix is 1.0: it must be"),
    "target examples that round to none": (
        ["--training.target_mix", "0.01"],
        "training.target_mix = 0.01 of 8 samples is 0 of them",
    ),
    "target examples with all candidates": (
        ["--selection.method", "full", "--training.target_mix", "0.25"],
        "training.target_mix = 0.25 has no meaning with selection.method = full",
    ),
    "a ranking without a target": (
        ["--selection.method", "random", "--selection.proposal", "bm25", "--data.target", "[]"],
        "data.target is empty, and selection.proposal = bm25 needs examples to aim at",
    ),
    "contraction without gradients": (
        ["--selection.contraction", "row_chunks", "--selection.backend", "factored"],
        "selection.contraction = row_chunks has no meaning with selection.backend = factored",
    ),
    "zero": (["--selection.keep_per_step", "0"], "selection.keep_per_step is 0: the smallest value is 1"),
    "negative ridge": (["--selection.ridge", "-1"], "selection.ridge is -1"),
    "not a number": (["--selection.ridge", "nan"], "selection.ridge"),
    "no learning rate": (["--training.learning_rate", "0"], "training.learning_rate is 0"),
    "beta of one": (["--training.betas", "[0.9, 1.0]"], "training.betas is (0.9, 1.0)"),
    "missing pool": (["--data.pool", "[nowhere.jsonl]"], "data.pool: there is no file nowhere.jsonl"),
    "missing scores": (
        ["--selection.seed_scores", "nowhere"],
        "selection.seed_scores: there is nothing at nowhere",
    ),
    "scores for nothing that learns": (
        ["--selection.proposal", "uniform", "--selection.seed_scores", "."],
        "selection.seed_scores = . has no meaning with selection.proposal = uniform",
    ),
    "missing test": (["--data.test", "[nowhere.parquet]"], "data.test: there is no file nowhere.parquet"),
    "no target": (["--data.target", "[]"], "data.target is empty, and selection.method = filter_then_weight"),
    "missing deepspeed file": (["--deepspeed", "nowhere.json"], "deepspeed: there is no file nowhere.json"),
    "checkpoints that never are": (
        ["--training.keep_every", "700"],
        "training.keep_every = 700 is no multiple of training.save_every = 500",
    ),
    "continue and delete": (
        ["--resume", "auto", "--run.overwrite", "true"],
        "resume = auto continues what run.overwrite would delete",
    ),
    "nothing to resume": (["--resume", "nowhere"], "resume: there is no folder nowhere"),
    "infinite learning rate": (["--training.learning_rate", ".inf"], "it must be positive and finite"),
    "too many steps": (["--training.steps", "9" * 400], "training.steps is more than the largest value"),
    "a name that no file can have": (["--data.pool", f"[{'x' * 300}.jsonl]"], "data.pool: there is no file"),
    "a weight for no name": (
        ["--data.pool_weights", "[1, 2]"],
        "data.pool_weights has 2 numbers and data.pool 1 names",
    ),
    "no weight": (["--data.pool_weights", "[]"], "data.pool_weights has 0 numbers and data.pool 1 names"),
    "a weight of zero": (["--data.pool_weights", "[0]"], "pool.jsonl 0.0: it must be positive and finite"),
    "a negative weight": (["--data.pool_weights", "[-1]"], "pool.jsonl -1.0: it must be positive and finite"),
    "an infinite weight": (
        ["--data.pool_weights", "[.inf]"],
        "pool.jsonl inf: it must be positive and finite",
    ),
    "a weight that is no number": (
        ["--data.pool_weights", "[.nan]"],
        "pool.jsonl nan: it must be positive and finite",
    ),
    "missing recipe": (["--config", "nowhere.yaml"], "nowhere.yaml"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_setting_ends_with_code_2_and_names_it(name, valid, capsys):
    changes, message = REFUSED[name]
    with pytest.raises(SystemExit) as ended:
        config.parse("", [*valid, *changes])
    assert ended.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_an_unknown_key_in_a_recipe_is_refused(valid, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("selection:\n  keep_per_stp: 3\n")
    with pytest.raises(SystemExit):
        config.parse("", ["--config", str(recipe), *valid])
    assert "keep_per_stp" in capsys.readouterr().err


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi")
)
REFUSED_FILES = {
    "aliases that grow": (BOMB, "with its aliases written out it holds more than 10000 values"),
    "a value within itself": ("data: &a {pool: *a}", "more than 10000 values"),
    # libyaml has a bound of its own in newer releases
    "deep nesting": ("data: " + "[" * 100_000 + "]" * 100_000, "nest"),
    "deep nesting that ends nowhere": ("data: " + "[" * 2000, "nest"),
    "nested blocks": (
        "data:\n" + "".join(" " * i + "-\n" for i in range(1, 200)),
        "is nested more than 100 levels deep",
    ),
    "a key twice": (
        "training: {steps: 5}\nrun: {seed: 1}\ntraining: {steps: 6}",
        "the key 'training' stands twice, the second time in line 3",
    ),
    "latin-1": (b"run: {folder: caf\xe9}", "the --config file is no UTF-8"),
    "a null byte": (b"run: {folder: 'a\0'}", "#x0000"),
    "a section that is a number": ("training: 5", "training is 5: a section holds settings"),
    "too many digits": ("training: {steps: " + "9" * 5000 + "}", "digits"),
    "a Python object": (
        "run: {folder: !!python/object/apply:os.getcwd []}",
        "could not determine a constructor",
    ),
    "a list": ("[1, 2]", "Unexpected config"),
}


@pytest.mark.parametrize("name", REFUSED_FILES)
def test_a_recipe_that_is_none_ends_with_code_2_and_a_sentence(name, valid, tmp_path, capsys):
    content, message = REFUSED_FILES[name]
    (tmp_path / "recipe.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SystemExit) as ended:
        config.parse("", [*valid, "--config", str(tmp_path / "recipe.yaml")])
    assert ended.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "settings", ["model: a_trap.Trap", "model: {class_path: a_trap.Trap}", "model.class_path: a_trap.Trap"]
)
def test_a_configuration_imports_nothing(settings, valid, tmp_path, monkeypatch, capsys):
    (tmp_path / "a_trap.py").write_text("class Trap: pass")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "recipe.yaml").write_text(settings)
    with pytest.raises(SystemExit):
        config.parse("", [*valid, "--config", str(tmp_path / "recipe.yaml")])
    with pytest.raises(ValueError):
        config.from_settings(yaml.safe_load(settings))
    assert "a_trap" not in sys.modules


def test_the_command_line_is_stronger_than_the_recipe_and_that_than_the_defaults(valid, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("selection:\n  keep_per_step: 3\n  ridge: 0.5\n")
    parsed = config.parse("", ["--config", str(recipe), *valid, "--selection.ridge", "0.25"]).selection
    assert (parsed.keep_per_step, parsed.ridge, parsed.candidates_per_step) == (
        3,
        0.25,
        Config().selection.candidates_per_step,
    )


def test_a_saved_configuration_reads_back_equal(valid, tmp_path):
    parsed = config.parse(
        "", [*valid, "--training.betas", "[0.8, 0.99]", "--model.lora_targets", "[q_proj, v_proj]"]
    )
    config.save(parsed, tmp_path / "config.yaml")
    assert asdict(config.load(tmp_path / "config.yaml")) == asdict(parsed)


@pytest.mark.parametrize(
    "method, asked, resolved",
    [
        ("filter_then_weight", "auto", "update"),
        ("top_k", "curvature", "curvature"),
        ("greats", "auto", "identity"),
        ("less", "update_to_gradient", "update_to_gradient"),
        ("max_loss", "auto", "auto"),
    ],
)
def test_the_saved_geometry_is_the_one_worked_in(valid, tmp_path, method, asked, resolved):
    parsed = config.parse("", [*valid, "--selection.method", method, "--selection.geometry", asked])
    config.save(parsed, tmp_path / "config.yaml")
    assert config.load(tmp_path / "config.yaml").selection.geometry == resolved


@pytest.mark.parametrize("said, meant", [("auto", "auto"), ("true", True), ("false", False)])
def test_packing_is_auto_or_a_decision(valid, tmp_path, said, meant):
    parsed = config.parse("", [*valid, "--model.packing", said])
    assert parsed.model.packing is meant or parsed.model.packing == meant == "auto"
    config.save(parsed, tmp_path / "config.yaml")
    assert config.load(tmp_path / "config.yaml").model.packing == meant


def test_the_ridge_may_be_infinite(valid, tmp_path):
    parsed = config.parse("", [*valid, "--selection.ridge", ".inf"])
    config.save(parsed, tmp_path / "config.yaml")
    assert config.load(tmp_path / "config.yaml").selection.ridge == float("inf")


@pytest.mark.parametrize("method", ["max_loss", "grad_norm", "random", "full"])
def test_methods_without_a_target_and_moments_need_neither_samples_nor_warm_up(valid, method):
    changes = ["--selection.method", method, "--data.target", "[]", "--training.steps", "2"]
    assert config.parse("", [*valid, *changes]).selection.method == method


@pytest.mark.parametrize(
    "method, candidates, keep, micro, world, steps",
    [
        ("filter_then_weight", 32, 8, 4, 2, 1),
        ("filter_then_weight", 32, 8, 1, 2, 4),
        ("full", 32, 8, 4, 2, 4),
        ("random", 6, 6, 2, 3, 1),
    ],
)
def test_gradient_accumulation_follows_from_what_is_trained(method, candidates, keep, micro, world, steps):
    settings = Config()
    settings.selection.method, settings.selection.candidates_per_step, settings.selection.keep_per_step = (
        method,
        candidates,
        keep,
    )
    settings.training.micro_batch_size = micro
    assert config.check_world_size(settings, world) == steps
    assert steps * micro * world == config.samples_per_step(settings)


@pytest.mark.parametrize(
    "candidates, keep, message",
    [
        (31, 8, "candidates_per_step = 31 is not divisible by 2 ranks.*next multiple is 32"),
        (32, 6, "keep_per_step = 6 is not divisible by world size x training.micro_batch_size = 2 x 4"),
    ],
)
def test_what_does_not_divide_is_refused_with_the_numbers(candidates, keep, message):
    settings = Config()
    settings.selection.candidates_per_step, settings.selection.keep_per_step = candidates, keep
    with pytest.raises(ValueError, match=message):
        config.check_world_size(settings, 2)


def test_columns_read_back_from_dotted_settings():
    """As a grid has them, which puts the settings of a base, the command line and a variant together."""
    columns = {"q": "prompt", "a.b": "completion"}
    for settings in (
        {f"data.columns.{name}": meant for name, meant in columns.items()},
        {"data.columns": columns},
    ):
        assert config.from_settings(settings).data.columns == columns
    replaced = config.from_settings({"data.columns.x": "prompt", "data.columns": {"q": "prompt"}})
    assert (
        replaced.data.columns == {"q": "prompt"} == config.from_settings(config.plain(replaced)).data.columns
    )
    with pytest.raises(ValueError, match=r"data\.columns"):
        config.from_settings({"data.columns": "prompt"})
