"""The reference model of rho_loss: loaded whole, frozen, adapters merged; another tokenizer is refused."""

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from pipeline.config import ModelConfig
from pipeline.training.model import load_reference_model, load_tokenizer
from tests.conftest import tokenizer
from tests.reference import add_lora, fill_adapters, tiny_llama

IDS = torch.tensor([[5, 9, 12, 7, 30, 41]])


def load(name, model_folder):
    settings = ModelConfig(name=model_folder)
    return load_reference_model(name, settings, load_tokenizer(settings), torch.float32, torch.device("cpu"))


def test_none_is_loaded_where_none_is_named(model_folder):
    assert load(None, model_folder) is None


def test_a_folder_is_loaded_frozen_and_in_eval_mode(model_folder):
    model = load(model_folder, model_folder)
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    assert not any("lora" in name for name, _ in model.named_parameters()), (
        "the run's adapters are not the reference's"
    )
    plain = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    assert torch.allclose(model(IDS).logits, plain(IDS).logits, atol=1e-5)


def test_an_adapter_is_merged_into_the_model_it_was_trained_on(model_folder, tmp_path):
    """Saved as a run saves its final/."""
    adapted = add_lora(AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32))
    fill_adapters(adapted)
    adapted.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    model = load(str(tmp_path), model_folder)
    assert not isinstance(model, PeftModel)
    wanted, plain = adapted.eval()(IDS).logits, load(model_folder, model_folder)(IDS).logits
    assert torch.allclose(model(IDS).logits, wanted, atol=1e-4) and (wanted - plain).abs().max() > 0.01


def test_another_tokenizer_is_refused(model_folder, tmp_path):
    tiny_llama().float().save_pretrained(tmp_path)
    other = tokenizer()
    other.add_tokens(["<other>"])
    other.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"reference_model = .* has another tokenizer \(.* tokens\) than model.name"
    ):
        load(str(tmp_path), model_folder)


def test_a_folder_that_is_not_there_is_refused(model_folder, tmp_path):
    with pytest.raises(ValueError, match=r"selection\.reference_model = .*nothing cannot be loaded"):
        load(str(tmp_path / "nothing"), model_folder)
