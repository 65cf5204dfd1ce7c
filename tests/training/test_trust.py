"""What a model's folder and a chat template can do, and cannot."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.config import ModelConfig
from pipeline.training.model import load_model, load_tokenizer


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
    with pytest.raises((pickle.UnpicklingError, ValueError, OSError)):
        load_model(ModelConfig(name=str(own_folder)), torch.float32, torch.device("cpu"), seed=0)
    assert not sprung.exists()


def test_code_that_comes_with_a_model_is_refused_unless_asked_for(own_folder, tmp_path):
    sprung = tmp_path / "sprung"
    (own_folder / "own.py").write_text(f"open({str(sprung)!r}, 'w')\nclass Own: pass\n")
    config = json.loads((own_folder / "config.json").read_text())
    (own_folder / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}))
    with pytest.raises(ValueError):
        load_model(ModelConfig(name=str(own_folder)), torch.float32, torch.device("cpu"), seed=0)
    assert not sprung.exists()


@pytest.mark.parametrize("content, message", [
    (b"a\n{% for x in %}", r"own\.jinja:2: "),
    (b"{% if x %}", r"own\.jinja:1: .*[Uu]nexpected end"), (b"caf\xe9", r"own\.jinja cannot be read"),
])  # fmt: skip
def test_a_template_that_is_none_is_named_with_its_line(model_folder, tmp_path, content, message):
    (tmp_path / "own.jinja").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_tokenizer(ModelConfig(name=model_folder, chat_template=str(tmp_path / "own.jinja")))
