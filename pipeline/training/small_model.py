"""A language model of a few million parameters, trained from scratch here, to fine-tune in minutes on a core.

    python -m pipeline.training.small_model --data POOL [POOL ...] --output FOLDER

Tokenizer (byte-level BPE, ChatML) and Llama learn the text of the pools in some epochs. ``model.name = demo``
stands for such a model of the demo data, made at first use; it never sees the target's kind, so that there is
something to learn in fine-tuning.
"""

import argparse
import math
import random
import shutil
from pathlib import Path

import torch
from filelock import FileLock
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pipeline.config import DataConfig
from pipeline.data import demo, sources
from pipeline.data.chat import tokenize_all
from pipeline.data.collate import collate
from pipeline.data.record import Record, parse
from pipeline.data.sample import Sample

DEMO_FOLDER = Path(".cache/demo_model")
PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def located(name: str) -> str:
    """The folder or name for transformers of the model ``name``; ``demo`` is made if it is not there yet."""
    if name != "demo":
        return name
    DEMO_FOLDER.parent.mkdir(parents=True, exist_ok=True)
    # Runs that start together make it once. A marker file would outlive a killed run, and others would wait.
    with FileLock(DEMO_FOLDER.with_suffix(".lock"), fallback_to_soft=False):
        if not DEMO_FOLDER.is_dir():
            make(
                demo_records(),
                DEMO_FOLDER,
                hidden_size=192,
                num_layers=4,
                vocabulary=1024,
                max_tokens=64,
                batch_tokens=512,
                epochs=5,
            )
    return str(DEMO_FOLDER)


def demo_records() -> list[Record]:
    """Clean samples of every kind but the target's, drawn with other seeds than the demo's own pool."""
    rows = [row for seed in (1, 2, 3) for row in demo.generate(demo.POOL_SAMPLES, seed)["pool"]]
    rows = [row for row in rows if row["damage"] == "none" and row["source"] != demo.TARGET_KIND]
    return [parse(row, "demo", number, f"demo:{number}") for number, row in enumerate(rows)]


def make(
    records: list[Record],
    folder: Path,
    hidden_size: int,
    num_layers: int,
    vocabulary: int,
    max_tokens: int,
    batch_tokens: int,
    epochs: int,
    seed: int = 0,
) -> float:
    """Train tokenizer and model on all tokens of ``records`` and write them to ``folder``.

    Returns the mean loss of the last epoch, the same on every call with the same number of threads.
    """
    tokenizer = train_tokenizer(records, vocabulary)
    samples, _ = tokenize_all(records, tokenizer, DataConfig(max_tokens=max_tokens, loss_on="all"))
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden_size,
            intermediate_size=hidden_size * 8 // 3,
            num_hidden_layers=num_layers,
            num_attention_heads=hidden_size // 32,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    batches = batches_of(samples, batch_tokens)
    steps = epochs * len(batches)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: min(1, t / 50) * 0.5 * (1 + math.cos(math.pi * t / steps))
    )
    rng, losses = random.Random(seed), list[float]()
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    with tqdm(
        total=steps,
        desc=f"making a model of {num_parameters / 1e6:.1f} M parameters",
        unit="step",
        mininterval=2,
    ) as progress:
        for _ in range(epochs):
            losses = []
            for batch in rng.sample(batches, len(batches)):
                input_ids_BT, labels_BT = collate(batch, tokenizer.pad_token_id)
                loss = model(input_ids=input_ids_BT, labels=labels_BT, use_cache=False).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
                losses.append(loss.item())
                progress.update()
            progress.set_postfix(loss=f"{sum(losses) / len(losses):.3f}")
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    tokenizer.save_pretrained(unfinished)
    model.save_pretrained(unfinished)
    unfinished.rename(folder)
    return sum(losses) / len(losses)


def train_tokenizer(records: list[Record], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE that splits numbers into digits and covers every text."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((part for record in records for part in record.parts()), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[START],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def batches_of(samples: list[Sample], batch_tokens: int) -> list[list[Sample]]:
    """Samples alike in length, up to ``batch_tokens`` tokens a batch with padding."""
    batches, batch = list[list[Sample]](), list[Sample]()
    for sample in sorted(samples, key=lambda sample: len(sample.input_ids)):
        if batch and (len(batch) + 1) * len(sample.input_ids) > batch_tokens:
            batches, batch = [*batches, batch], []
        batch.append(sample)
    return [*batches, batch]


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", required=True, help="files or datasets as in data.pool")
    parser.add_argument("--output", type=Path, required=True, help="a folder that does not exist yet")
    parser.add_argument(
        "--hidden-size", type=int, default=192, help="a multiple of 32 (default: %(default)s)"
    )
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--max-tokens", type=int, default=512, help="longest sample (default: %(default)s)")
    parser.add_argument(
        "--batch-tokens",
        type=int,
        default=2048,
        help="fewer are more updates an epoch (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0)
    o = parser.parse_args(arguments)
    if o.output.exists():
        parser.error(f"--output: {o.output} exists; name another folder, or remove it")
    if o.hidden_size % 32:
        parser.error(f"--hidden-size is {o.hidden_size}: heads are 32 wide, so it must be a multiple of 32")
    records, _ = sources.read(o.data, "error", "--data")
    o.output.parent.mkdir(parents=True, exist_ok=True)
    loss = make(
        records,
        o.output,
        o.hidden_size,
        o.layers,
        o.vocabulary,
        o.max_tokens,
        o.batch_tokens,
        o.epochs,
        o.seed,
    )
    print(f"{o.output}: loss {loss:.3f} nats per token in the last epoch")


if __name__ == "__main__":
    main()
