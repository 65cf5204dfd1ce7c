"""A byte-level tokenizer built here: it covers every text, and every supervised token can be read back."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pipeline.data.chat import tokenize
from pipeline.data.sample import IGNORED


def make_tokenizer(chat_template, **options):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # It merges across a line break, as real vocabularies do: a border between turns may fall inside a token.
    vocabulary = {token: i for i, token in enumerate([*alphabet, "ĊĊ", "Ġb"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("Ċ", "Ċ"), ("Ġ", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{**special, **options})
    wrapped.chat_template = chat_template
    return wrapped


def whole(record, tokenizer, loss_on="assistant"):
    """The record's sample, however long."""
    sample = tokenize(record, tokenizer, 10**6, "truncate", loss_on)
    assert all(label in (token, IGNORED) for token, label in zip(sample.input_ids, sample.labels))
    return sample


def supervised_text(sample, tokenizer):
    """What is supervised, decoded, with a bar between separate spans."""
    runs, previous = [], IGNORED
    for label in sample.labels:
        if label != IGNORED:
            runs = [*runs, []] if previous == IGNORED else runs
            runs[-1].append(label)
        previous = label
    return "|".join(tokenizer.decode(run) for run in runs)
