"""Write docs/api.md from the docstrings of what users import, read without running them (griffe, griffe2md).

python -m benchmarks.api
"""

import logging
import re
import sys
from pathlib import Path

import griffe
from griffe2md import render_object_docs

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "api.md"
INTRODUCTION = """\
# API

Made from the docstrings by `python -m benchmarks.api`; a test holds this page against them. Names of tensors
end with their axes: B samples of a batch, T tokens, V vocabulary, C candidates of all ranks, R of this one, K
kept. The other way in is the command line: `python -m pipeline.train --help`.
"""
# heading -> object: members to show, () for those with a docstring
PARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "In a loop of one's own": {
        "hook.SelectionHook": ("attach", "select", "micro_batches", "weighted_loss", "agree"),
        "step.look.Look": (),
        "train_step.train_step": (),
        "step.trained_step.TrainedStep": (),
        "step.micro_batches.MicroBatch": (),
        "step.weighted_step.weighted_step": (),
        "step.weighted_step.StepResult": (),
        "training.self_check.run": (),
        "ranks.narrator.Line": (),
        "scoring.engines.TorchEngine": ("global_steps",),
    },
    "In Hugging Face's Trainer": {
        "integrations.trainer.SelectionTrainer": (),
        "integrations.trainer.SelectionMixin": ("chosen",),
    },
    "Samples": {
        "data.sample.Sample": (),
        "data.batch.Candidates": (),
        "data.batch.samples_of": (),
        "data.targets.TargetSet": ("batch", "shard"),
        "data.stream.CandidateStream": ("positions", "order", "epochs", "shard", "share"),
    },
    "What a step gets": {
        "proposal.proposer.Proposer": ("plan", "share", "observe"),
        "proposal.proposer.Plan": (),
        "proposal.contract.Proposed": (),
        "proposal.uniform.Uniform": (),
        "proposal.schedule.Every": (),
    },
    "Losses": {
        "scoring.loss.per_sample_loss": (),
        "scoring.loss.causal_logits": (),
        "training.attention.packs": (),
    },
    "A selection method": {
        f"selection.contract.{name}": () for name in ("Selection", "Signals", "Settings", "Method")
    },
    "Settings": {
        f"config.{name}": ()
        for name in ("Config", "ModelConfig", "DataConfig", "SelectionConfig", "TrainingConfig", "RunConfig")
    },
}
FORM = {
    "docstring_style": "google",
    "heading_level": 3,
    "members_order": "source",
    "summary": False,
    "show_root_full_path": True,
    "show_root_members_full_path": False,
    "show_object_full_path": False,
    "show_if_no_docstring": True,
    "filters": ["!^_"],
    "inherited_members": False,
    "show_docstring_attributes": False,
}


def render() -> str:
    """The page. Raises KeyError for an object that is not there."""
    package = griffe.load(
        "pipeline",
        search_paths=[str(ROOT)],
        allow_inspection=False,
        docstring_parser="google",
        docstring_options={"returns_multiple_items": False, "returns_named_value": False},
    )
    pages = [INTRODUCTION]
    for heading, objects in PARTS.items():
        pages.append(f"## {heading}\n")
        for path, members in objects.items():
            found = package[path]
            # The constructor of a dataclass repeats the fields under it.
            form = {**FORM, "show_signature": "dataclass" not in found.labels}
            pages.append(render_object_docs(found, {**form, "members": list(members)} if members else form))
    return "\n".join(without_links_to_nowhere(page).strip() + "\n" for page in pages)


def without_links_to_nowhere(page: str) -> str:
    """The page without the links that griffe2md puts on every name in a type: GitHub does not make their
    anchors."""
    while (plain := re.sub(r"\[([^\[\]]+)\]\(#[^()\s]+\)", r"\1", page)) != page:
        page = plain
    return page


def main() -> int:
    logging.getLogger("griffe").setLevel(logging.ERROR)
    PAGE.write_text(render())
    print(f"written: {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
