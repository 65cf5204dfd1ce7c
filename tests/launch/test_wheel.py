"""What `pip install .` gives: programs as commands, presets and recipes by name, and nothing that only the
project needs."""

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

from pipeline.settings import PRESETS, RECIPES, TASKS, TEMPLATES, by_name

pytest.importorskip(
    "setuptools",
    minversion="77",
    reason="builds the wheel without network: needs setuptools (requirements-test.txt)",
)

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PROGRAMS = [
    file.stem for file in (ROOT / "pipeline").glob("*.py") if '__name__ == "__main__"' in file.read_text()
]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder that pip would unpack the wheel to. Built of a copy: setuptools leaves folders, and finds
    what an earlier build left."""
    source, output, unpacked = (tmp_path_factory.mktemp(name) for name in ("source", "wheel", "unpacked"))
    for name in ("pipeline", "ds_configs", "launch", "tests", "benchmarks"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (*ROOT.glob("*.txt"), *(ROOT / name for name in ("pyproject.toml", "README.md", "LICENSE"))):
        shutil.copy(file, source)
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    result = subprocess.run(
        [sys.executable, "-c", build, str(output)], capture_output=True, text=True, cwd=source
    )
    assert result.returncode == 0, result.stderr
    (wheel,) = output.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(unpacked)
    return unpacked


def test_the_wheel_holds_the_package_and_the_files_it_finds_by_name_and_nothing_else(installed):
    found = {str(file.relative_to(installed)) for file in installed.rglob("*") if file.is_file()}
    expected = {str(file.relative_to(ROOT)) for file in (ROOT / "pipeline").rglob("*.py")} | {
        "pipeline/py.typed"
    }
    for kind in (PRESETS, RECIPES, TEMPLATES, TASKS):
        assert kind.names(), kind
        expected |= {f"pipeline/{Path(kind.place).name}/{name}{kind.suffix}" for name in kind.names()}
    assert {file for file in found if ".dist-info/" not in file} == expected


def test_every_program_is_a_command(installed):
    read = ConfigParser()
    read.read(next(installed.glob("*.dist-info/entry_points.txt")))
    commands = dict(read["console_scripts"])
    assert sorted(commands) == sorted(f"ftw-{name}" for name in PROGRAMS)
    for command, place in commands.items():
        module, function = place.split(":")
        assert module == f"pipeline.{command.removeprefix('ftw-')}"
        tree = ast.parse((installed / f"{module.replace('.', '/')}.py").read_text())
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, place
        # What `python -m` does besides calling it, as with signals, the command would not.
        (last,) = (node.body for node in tree.body if isinstance(node, ast.If))
        assert ast.unparse(last) in (f"{function}()", f"sys.exit({function}())"), place


def test_extras_are_the_requirement_files(installed):
    metadata = PathDistribution(next(installed.glob("*.dist-info"))).metadata
    assert set(metadata.get_all("Provides-Extra")) == {"gpu", "eval", "trl", "dev"}
    names = {re.match(r"[\w.-]+", line)[0] for line in metadata.get_all("Requires-Dist")}
    for file in ROOT.glob("requirements*.txt"):
        lines = [line for line in file.read_text().splitlines() if line and line[0] != "#"]
        assert lines and {re.match(r"[\w.-]+", line)[0] for line in lines} <= names, file


def test_recipes_and_presets_go_by_name_outside_the_repository(installed, tmp_path):
    """Parsed by the unpacked wheel, in a folder where there is nothing."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pipeline import config, settings\n"
        "assert settings.__file__.startswith(sys.argv[1]), settings.__file__\n"
        "for name in ('lora', 'full_finetune', 'paper_qwen3_06b'):\n"
        "    parsed = config.parse_with(config.build_parser(''), ['--config', name, '--deepspeed', 'zero3'], "
        "needs_data=False)[0]\n    print(parsed.run.folder, settings.PRESETS.find(parsed.deepspeed))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(installed)], capture_output=True, text=True, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert [line.split()[0] for line in result.stdout.splitlines()] == [
        "runs/lora",
        "runs/full_finetune",
        "runs/paper_qwen3_06b_mmlu",
    ]
    assert all(
        line.endswith(str(installed / "pipeline/ds_configs/zero3.json"))
        for line in result.stdout.splitlines()
    )


def test_a_shipped_name_means_the_same_wherever_one_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("zero2").write_text("{}")
    assert PRESETS.find("zero2") == str(ROOT / "ds_configs/zero2.json")
    assert PRESETS.find("./zero2") == "./zero2" and PRESETS.find("mine.json") == "mine.json"


def test_a_path_to_a_shipped_file_is_its_name(tmp_path, monkeypatch):
    """As long as it is that file: settings that were saved before there were names hold paths."""
    monkeypatch.chdir(ROOT)
    before = {
        "deepspeed": "ds_configs/zero2.json",
        "model.chat_template": "launch/recipes/tulu.jinja",
        "run.seed": 1,
    }
    assert by_name(before) == {"deepspeed": "zero2", "model.chat_template": "tulu", "run.seed": 1}
    assert by_name(by_name(before)) == by_name(before) and by_name({"model.chat_template": None}) == {
        "model.chat_template": None
    }
    monkeypatch.chdir(tmp_path)
    assert by_name(before) == before, "it is not there"
    own = tmp_path / "zero2.json"
    own.write_text("{}")
    assert PRESETS.name_of(str(own)) == str(own), "it says something else"
