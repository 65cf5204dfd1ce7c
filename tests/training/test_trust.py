"""What a model's folder and a chat template can do, and cannot."""

import ast
import json
import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline import config as configuration
from pipeline.config import Config, ModelConfig
from pipeline.training import run_folder
from pipeline.training.engine import deepspeed_config
from pipeline.training.model import load_model, load_tokenizer

ROOT = Path(__file__).parents[2]


class Trap:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture
def own_folder(model_folder, tmp_path):
    """A copy of the model's folder without its weights."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in Path(model_folder).iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_weights_in_a_pickle_run_no_code(own_folder, model_folder, tmp_path):
    sprung = tmp_path / "sprung"
    weights = load_file(f"{model_folder}/model.safetensors")
    torch.save({**weights, "trap": Trap(sprung)}, own_folder / "pytorch_model.bin", pickle_module=pickle)
    with pytest.raises(Exception, match=r"(?i)weights.only"):
        load_model(ModelConfig(name=str(own_folder)), torch.float32, torch.device("cpu"), seed=0)
    assert not sprung.exists()


def test_code_that_comes_with_a_model_is_refused_unless_asked_for(own_folder, tmp_path):
    sprung = tmp_path / "sprung"
    (own_folder / "own.py").write_text(f"open({str(sprung)!r}, 'w')\nclass Own: pass\n")
    config = json.loads((own_folder / "config.json").read_text())
    (own_folder / "config.json").write_text(
        json.dumps({**config, "model_type": "own", "auto_map": {"AutoConfig": "own.Own"}})
    )
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_model(ModelConfig(name=str(own_folder)), torch.float32, torch.device("cpu"), seed=0)
    assert not sprung.exists()


@pytest.mark.parametrize(
    "content, message",
    [
        (b"a\n{% for x in %}", r"own\.jinja:2: "),
        (b"{% if x %}", r"own\.jinja:1: .*[Uu]nexpected end"),
        (b"caf\xe9", r"own\.jinja cannot be read"),
    ],
)
def test_a_template_that_is_none_is_named_with_its_line(model_folder, tmp_path, content, message):
    (tmp_path / "own.jinja").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_tokenizer(ModelConfig(name=model_folder, chat_template=str(tmp_path / "own.jinja")))


def test_no_secret_of_the_environment_is_saved_with_a_run(tmp_path, monkeypatch):
    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "do-not-save-this")
    configuration.save(Config(), tmp_path / "config.yaml")
    run_folder.write_environment(tmp_path, {"world_size": 1})
    (tmp_path / "deepspeed.json").write_text(json.dumps(deepspeed_config(Config(), 1, torch.float32)))
    assert len(list(tmp_path.iterdir())) == 3
    assert not any("do-not-save-this" in file.read_text() for file in tmp_path.iterdir())


def called(file: Path) -> set[str]:
    """Names that are called, and keyword arguments that are True or False, as they are written.

    ``torch.load`` of weights alone, which makes nothing but tensors and plain containers, is not among them.
    """
    calls = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    words = {call: {ast.unparse(word) for word in call.keywords} for call in calls}
    names = {ast.unparse(call.func) for call in calls if "weights_only=True" not in words[call]}
    return names.union(*words.values())


@pytest.mark.parametrize(
    "file", sorted((ROOT / "pipeline").rglob("*.py")), ids=lambda file: str(file.relative_to(ROOT))
)
def test_no_shell_no_pickle_and_no_code_of_a_model_by_default(file):
    forbidden = {
        "os.system",
        "os.popen",
        "pickle.load",
        "pickle.loads",
        "torch.load",
        "yaml.load",
        "eval",
        "exec",
        "shell=True",
        "weights_only=False",
        "trust_remote_code=True",
        "allow_pickle=True",
    }
    assert not called(file) & forbidden


@pytest.mark.parametrize(
    "script", [*ROOT.glob("launch/*.sh"), *ROOT.glob("launch/slurm/*.sbatch")], ids=lambda file: file.name
)
def test_launchers_build_no_command_of_arguments(script):
    code = "\n".join(line for line in script.read_text().splitlines() if not line.lstrip().startswith("#"))
    assert not re.search(r"\beval\b|bash -c \"|sh -c \"|[^\"]\$@", code)
