"""The launch scripts, recipes and DeepSpeed configurations hold together."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import config
from pipeline.comparison import grid

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted([*ROOT.glob("launch/*.sh"), *ROOT.glob("launch/slurm/*.sbatch"), ROOT / ".ci/run"])
RECIPES = sorted(file for file in ROOT.glob("launch/recipes/*.yaml") if not file.name.startswith("compare_"))
GRIDS = sorted(ROOT.glob("launch/recipes/compare_*.yaml"))
DS_CONFIGS = sorted(ROOT.glob("ds_configs/*.json"))


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("script", SCRIPTS, ids=named)
def test_bash_can_parse_the_script(script):
    result = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(
    shutil.which("shellcheck") is None, reason="shellcheck is not installed (requirements-test.txt)"
)
@pytest.mark.parametrize("script", SCRIPTS, ids=named)
def test_shellcheck_has_no_complaint(script):
    result = subprocess.run(
        ["shellcheck", "--external-sources", script], capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode == 0, result.stdout


def test_setup_names_the_way_out_when_there_is_no_python(tmp_path):
    bash = shutil.which("bash")
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": "no-such-python", "VENV": str(tmp_path / "venv")}
    result = subprocess.run([bash, ROOT / "launch/setup.sh"], capture_output=True, text=True, env=environment)
    assert result.returncode == 1
    assert "no-such-python" in result.stderr and "set PYTHON" in result.stderr
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize(
    "launcher, module", [("deepspeed", "pipeline.train"), ("torchrun", "pipeline.score")]
)
def test_the_launcher_takes_the_place_of_the_script_and_so_gets_its_signals(launcher, module, tmp_path):
    """In a container the script is process 1, and SIGTERM for the ranks to write a checkpoint reaches nobody
    else."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "activate").write_text(f"PATH={folder}:$PATH\n")
    # what the python below answers to every question
    (tmp_path / ".installed-requirements.txt").write_text("0\n")
    for name in ("python", "deepspeed"):
        (folder / name).write_text(
            '#!/usr/bin/env bash\n[[ "$1" == -c ]] && { cat >/dev/null; echo 0; } || echo "$$ $*"\n'
        )
        (folder / name).chmod(0o755)
    environment = {
        **os.environ,
        "VENV": str(tmp_path),
        "PYTHON": sys.executable,
        "DOCTOR": "0",
        "LAUNCHER": launcher,
        "MODULE": module,
    }
    script = subprocess.Popen(
        ["bash", ROOT / "launch/train.sh", "--resume", "auto"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    pid, arguments = script.communicate()[0].strip().split(" ", 1)
    assert arguments.endswith(f"--module {module} --resume auto")
    assert arguments.startswith("-m torch.distributed.run") == (launcher == "torchrun")
    assert int(pid) == script.pid


@pytest.mark.parametrize("recipe", RECIPES, ids=named)
def test_recipe_is_a_valid_configuration(recipe, tmp_path):
    sample = tmp_path / "data.jsonl"
    sample.write_text("{}\n")
    paths = [f"--data.{name}=[{sample}]" for name in ("pool", "target", "test")]
    parsed = config.parse("", ["--config", str(recipe), *paths])
    for world_size in (1, 2):
        assert config.check_world_size(parsed, world_size) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("recipe", GRIDS, ids=named)
def test_grid_is_valid_and_every_variant_differs(recipe, tmp_path, monkeypatch):
    for variable in ("DATA", "TEST"):
        monkeypatch.setenv(variable, str(tmp_path))
    for name in re.findall(r"\$\{(?:DATA|TEST)\}/([\w/.]+)", recipe.read_text()):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}\n")
    read, cells, _ = grid.parse("", ["--config", str(recipe)])
    assert len(cells) == len(read.variants) * len(read.seeds) * len(read.targets)
    first = [cell for cell in cells if (cell.target, cell.seed) == (cells[0].target, cells[0].seed)]
    settings = [
        (str(cell.config.selection), str(cell.config.training), str(cell.config.data)) for cell in first
    ]
    assert len(set(settings)) == len(read.variants)


@pytest.mark.parametrize("name", ["lora", "full_finetune"])
def test_recipe_for_gpus_divides_over_8_of_them(name):
    parsed = config.load(ROOT / f"launch/recipes/{name}.yaml")
    assert config.check_world_size(parsed, 8) == 1


@pytest.mark.parametrize("path", DS_CONFIGS, ids=named)
def test_deepspeed_configuration_leaves_to_the_trainer_what_the_recipe_sets(path):
    content = json.loads(path.read_text())
    assert set(content) == {"zero_optimization"}, (
        "batch sizes, precision and optimizer are written once, in the recipe"
    )
    assert content["zero_optimization"]["stage"] == int(path.stem.removeprefix("zero")[0])
    assert ("offload_optimizer" in content["zero_optimization"]) == path.stem.endswith("_offload")
