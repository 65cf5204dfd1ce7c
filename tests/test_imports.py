"""Data flows one way, and so do imports."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "pipeline"
MAY_IMPORT = {  # part: parts of ours that it may use besides itself
    "versions": set(),
    "yaml_text": set(),
    "settings": set(),
    "ranks": set(),
    "selection": set(),
    "scoring": {"ranks"},
    "reporting": {"settings"},
    "config": {"selection", "settings", "yaml_text"},
    "data": {"config"},
    "step": {"config", "data", "ranks", "scoring", "selection"},
    "hook": {"config", "data", "ranks", "scoring", "selection", "step"},
    "training": {
        "config",
        "data",
        "hook",
        "ranks",
        "reporting",
        "scoring",
        "selection",
        "settings",
        "step",
        "versions",
    },
    "datastore": {"config", "data", "hook", "ranks", "scoring", "settings", "training", "versions"},
    "score": {"config", "data", "datastore", "hook", "ranks", "settings", "training"},
    "integrations": {"config", "data", "hook", "ranks", "scoring", "selection", "step", "training"},
    "planning": {"config", "scoring", "selection", "training"},
    "plan": {"config", "planning", "training"},
    "report": {"data", "reporting"},
    "evaluate": {"config", "ranks", "settings", "training", "versions"},
    "comparison": {"config", "data", "reporting", "settings", "yaml_text"},
    "compare": {"comparison"},
    "train": {"config", "data", "hook", "ranks", "reporting", "scoring", "selection", "step", "training"},
}
INTERNALS = {
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
    """All that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: line {node.lineno}: a relative import hides its direction"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def imported(file: Path) -> set[str]:
    """Parts of ours that a file imports."""
    return {module.split(".")[1] for module in modules(file) if module.startswith("pipeline.")}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_go_one_way(file):
    part = part_of(file)
    if part in MAY_IMPORT:  # other programs stand above everything
        too_high = imported(file) - MAY_IMPORT[part] - {part}
        assert not too_high, f"{file.relative_to(ROOT)} imports {sorted(too_high)}"


def test_nothing_but_programs_imports_a_program():
    programs = {"train", "report", "plan", "compare", "score", "evaluate", "doctor"}
    for file in FILES:
        if part_of(file) not in programs:
            assert not imported(file) & programs, file


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_only_moments_knows_the_internals_of_zero(file):
    words = {node.attr for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute)}
    if file == ROOT / "scoring" / "moments.py":
        assert words & INTERNALS
    else:
        assert not words & INTERNALS, f"{file.relative_to(ROOT)}: {sorted(words & INTERNALS)}"


def test_tests_import_no_benchmark_program():
    """But those of the programs themselves, and of the pages in docs/ that such a program writes. What both
    need is the tests' own, and benchmarks import it from there."""
    tests = Path(__file__).parent
    for file in tests.rglob("*.py"):
        if file.relative_to(tests).parts[0] not in ("benchmarks", "docs"):
            assert not {name for name in modules(file) if name.split(".")[0] == "benchmarks"}, file
