"""Data flows one way, and so do imports; and what is not needed yet is not loaded yet."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "pipeline"
MAY_IMPORT = {  # part: parts of ours that it may use besides itself
    "versions": set(),
    "yaml_text": set(),
    "settings": set(),
    "durable": set(),
    "geometry": set(),
    "ranks": set(),
    "selection": set(),
    "scoring": {"geometry", "ranks"},
    "reporting": {"durable", "settings"},
    "config": {"durable", "geometry", "selection", "settings", "yaml_text"},
    "data": {"config", "durable"},
    "proposal": {"config", "data", "durable", "ranks", "selection"},
    "step": {"config", "data", "geometry", "proposal", "ranks", "scoring", "selection"},
    "hook": {"config", "data", "ranks", "scoring", "selection", "step"},
    "train_step": {"hook", "proposal", "scoring", "step"},
    "training": {
        "config",
        "data",
        "durable",
        "hook",
        "proposal",
        "ranks",
        "reporting",
        "scoring",
        "selection",
        "settings",
        "step",
        "train_step",
        "versions",
    },
    "datastore": {
        "config",
        "data",
        "durable",
        "geometry",
        "hook",
        "ranks",
        "scoring",
        "selection",
        "settings",
        "step",
        "training",
        "versions",
    },
    "score": {"config", "datastore", "ranks"},
    "integrations": {
        "config",
        "data",
        "hook",
        "proposal",
        "ranks",
        "scoring",
        "selection",
        "step",
        "training",
    },
    "planning": {"config", "data", "geometry", "proposal", "scoring", "selection", "training"},
    "plan": {"config", "planning"},
    "doctor": {"config", "data", "planning", "ranks", "training"},
    "report": {"data", "reporting"},
    "evaluate": {"config", "ranks", "settings", "training", "versions"},
    "comparison": {"config", "data", "durable", "reporting", "selection", "settings", "yaml_text"},
    "compare": {"comparison"},
    "train": {"config", "ranks", "training"},
}
INTERNALS = {  # of DeepSpeed's partitions, as attributes or as names in getattr
    "ds_id",
    "ds_numel",
    "ds_persist",
    "ds_secondary_tensor",
    "ds_shape",
    "ds_status",
    "ds_tensor",
    "partition_numel",
    "get_param_id",
    "_get_param_partition_rank",
    "_hp_mapping",
    "optimizer_swapper",
    "swap_element_size",
    "swap_params_info",
    "swap_path",
    "parameter_offload",
    "cur_scale",
    "fp32_groups_flat",
    "fp32_groups_flat_partition",
    "single_partition_of_fp32_groups",
    "fp32_partitioned_groups_flat",
    "bit16_groups",
    "bit16_groups_flat",
    "bf16_groups",
    "bf16_groups_flat",
    "fp16_groups",
    "grad_position",
    "sub_group_to_group_id",
    "real_dp_process_group",
}
FILES = sorted(ROOT.rglob("*.py"))


def part_of(file: Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def modules(file: Path) -> set[str]:
    """What a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: line {node.lineno}: a relative import hides its direction"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def imported(file: Path) -> set[str]:
    """Parts of ours that a file imports, anywhere in it."""
    return {module.split(".")[1] for module in modules(file) if module.startswith("pipeline.")}


def words(file: Path) -> set[str]:
    """Attributes that a file names, those too that it names in a text, as for getattr."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return texts | {node.attr for node in nodes if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_go_one_way(file):
    part = part_of(file)
    too_high = imported(file) - MAY_IMPORT.get(part, set()) - {part}
    assert not too_high, f"{file.relative_to(ROOT)} imports {sorted(too_high)}"


def test_nothing_imports_a_program():
    """Programs do not import one another either: what two of them need has a file of its own below them."""
    programs = {"train", "report", "plan", "compare", "score", "evaluate", "doctor"}
    for file in FILES:
        found = imported(file) & programs - {part_of(file)}
        assert not found, f"{file.relative_to(ROOT)} imports {sorted(found)}"


def test_only_one_file_forces_to_the_disk():
    found = {file.relative_to(ROOT).name for file in FILES if "fsync" in file.read_text()}
    assert found == {"durable.py"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_only_moments_knows_the_internals_of_zero(file):
    found = words(file) & INTERNALS
    found |= {module for module in modules(file) if module.startswith("deepspeed.runtime.zero")}
    if file == ROOT / "scoring" / "moments.py":
        assert found >= {"ds_numel", "ds_shape", "ds_tensor", "optimizer_swapper", "grad_position"}
    else:
        assert not found, f"{file.relative_to(ROOT)}: {sorted(found)}"


def loaded(program: str) -> tuple[set[str], str]:
    """Packages that a fresh interpreter has loaded after ``program``, and the code that it ends with."""
    script = (
        "import sys\ncode = 0\n"
        f"try:\n    {program}\nexcept SystemExit as ended:\n    code = ended.code\n"
        "print(code, *sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT.parent)
    assert ended.returncode == 0, ended.stderr
    code, *names = ended.stdout.splitlines()[-1].split()
    return set(names), code


@pytest.mark.slow
@pytest.mark.parametrize("program", ["train", "score", "compare", "evaluate"])
@pytest.mark.parametrize("arguments, code", [(["--help"], "0"), (["--no.such_setting", "1"], "2")])
def test_help_and_wrong_settings_are_answered_before_anything_heavy_is_loaded(program, arguments, code):
    names, found = loaded(f"from pipeline.{program} import main as program; program({arguments})")
    assert "pipeline" in names and found == code
    assert not names & {"torch", "deepspeed", "transformers", "peft", "datasets", "pandas", "matplotlib"}


@pytest.mark.slow
def test_a_contradiction_too_is_answered_before_anything_heavy_is_loaded():
    """As the installed program, ftw-train, calls it."""
    names, found = loaded("from pipeline.train import run; run(['--selection.keep_per_step', '99'])")
    assert found == "2" and not names & {"torch", "deepspeed", "transformers"}


@pytest.mark.slow
def test_an_engine_needs_neither_figures_nor_templates_nor_datasets():
    names, _ = loaded("import pipeline.training.engine")
    assert "deepspeed" in names
    assert not names & {"matplotlib", "jinja2", "datasets", "pandas", "transformers"}


def test_tests_import_no_benchmark_program():
    """But those of the programs themselves, and of the pages in docs/ that such a program writes. What both
    need is the tests' own, and benchmarks import it from there."""
    tests = Path(__file__).parent
    for file in tests.rglob("*.py"):
        if file.relative_to(tests).parts[0] not in ("benchmarks", "docs"):
            assert not {name for name in modules(file) if name.split(".")[0] == "benchmarks"}, file
