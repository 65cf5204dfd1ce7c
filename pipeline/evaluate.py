"""Score a trained run, or any model, on benchmark tasks, with EleutherAI's lm-evaluation-harness.

python -m pipeline.evaluate --model RUN_OR_MODEL --tasks mmlu:5 tydiqa:1 [--limit N] [--batch_size N]
"""

import argparse
import difflib
import json
import os
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Optional

from pipeline import config as configuration
from pipeline.settings import TASKS
from pipeline.versions import installed

PACKAGES = ("lm_eval", "torch", "transformers", "peft", "datasets")


def main(arguments: Optional[list[str]] = None) -> int:
    options = parse(arguments)
    try:
        model = find_model(options.model)
        manager = find_tasks([TASKS.folder, *options.include_path])
        wanted = load_tasks(options.tasks, manager)
        harness = load_model(model, options)
        scores = {name: score(harness, manager, *task, options) for name, task in wanted.items()}
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    found = {
        "model": asdict(model),
        "settings": settings(options),
        "tasks": scores,
        "versions": installed(PACKAGES),
    }
    output = options.output or (Path(options.model) / "evaluation_tasks.json" if model.is_run else None)
    if output:
        print(f"{'Replaced' if output.is_file() else 'Written to'} {output}")
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(headline(options.model, scores)))
    return 0


def parse(arguments: Optional[list[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pipeline.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", required=True, help="run folder, folder of a model or adapter, or hub name"
    )
    parser.add_argument(
        "--tasks",
        required=True,
        nargs="+",
        metavar="NAME[:SHOTS]",
        help="lm-eval's tasks, groups or tags, with the number of examples in the prompt if it is not the "
        "task's own, separated by spaces or commas: mmlu:5 tydiqa:1 (tydiqa: mean F1 of tydiqa_goldp_*, from "
        "launch/lm_eval_tasks)",
    )
    parser.add_argument("--limit", type=int, help="samples of each task, to try things out; default: all")
    parser.add_argument("--batch_size", type=int, default=8, help="samples in one forward (default: 8)")
    parser.add_argument(
        "--precision",
        choices=("auto", "bf16", "fp32"),
        default="auto",
        help="auto is bf16 on a GPU and fp32 on CPU",
    )
    parser.add_argument(
        "--apply_chat_template",
        action="store_true",
        help="put prompts into the tokenizer's chat template, examples as turns",
    )
    parser.add_argument(
        "--include_path",
        type=Path,
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="folders with tasks of your own, YAML as lm-eval's",
    )
    parser.add_argument(
        "--trust_remote_code", action="store_true", help="run Python code that comes with a hub model"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="default: evaluation_tasks.json in the run folder; else not written",
    )
    options = parser.parse_args(arguments)
    options.tasks = [name for names in options.tasks for name in names.split(",") if name]
    return options


@dataclass(frozen=True)
class Model:
    """A model as transformers and peft load it."""

    name: str
    """Folder or hub name of the base model, or of the whole model."""
    revision: Optional[str] = None
    adapter: Optional[str] = None
    tokenizer: Optional[str] = None
    """Folder of the tokenizer, where it is not the model's."""
    is_run: bool = False


def find_model(name: str) -> Model:
    """The final adapter or model of a run, or the model of that name. Raises ValueError where a run has
    none."""
    folder = Path(name)
    is_run = (folder / "config.yaml").is_file()
    final = folder / "final" if is_run else folder
    if is_run and not (final / "config.json").is_file() and not (final / "adapter_config.json").is_file():
        raise ValueError(
            f"--model: the run {name} has no model in {final}: let it come to its end, "
            "with run.save_model = true"
        )
    if not (final / "adapter_config.json").is_file():
        return Model(str(final) if is_run else name, is_run=is_run)
    if is_run:
        base = configuration.load(folder / "config.yaml").model
        return Model(base.name, base.revision, str(final), str(final), is_run)
    adapter = json.loads((final / "adapter_config.json").read_text())
    has_tokenizer = (final / "tokenizer_config.json").is_file()
    return Model(
        adapter["base_model_name_or_path"],
        adapter.get("revision"),
        str(final),
        str(final) if has_tokenizer else None,
    )


def find_tasks(folders: list[Path]):
    """lm-eval's TaskManager: its own tasks and those in ``folders``. Raises ValueError where lm-eval or a
    folder is missing."""
    try:
        from lm_eval.tasks import TaskManager  # optional
    except ImportError as error:
        raise ValueError(
            f"lm-eval cannot be imported ({error}): pip install -r requirements-eval.txt, or the extra eval"
        ) from error
    if missing := [str(folder) for folder in folders if not folder.is_dir()]:
        raise ValueError(f"--include_path: there is no folder {', '.join(missing)}")
    return TaskManager(include_path=folders)


def load_tasks(names: list[str], manager) -> dict[str, tuple[list, Optional[int]]]:
    """Task objects of lm-eval with their data, and the number of examples in the prompt (None: the task's
    own), by name as given.

    Raises ValueError where a name is unknown, or a task's data cannot be loaded.
    """
    split = {name: name.partition(":")[::2] for name in names}
    for name, (task, shots) in split.items():
        if shots and not shots.isdecimal():
            raise ValueError(
                f"--tasks: {name} has '{shots}' behind the colon, "
                "where the number of examples in the prompt belongs"
            )
        if task not in manager.all_tasks:
            close = difflib.get_close_matches(task, manager.all_tasks, n=5)
            similar = f"; similar ones: {', '.join(close)}" if close else ""
            raise ValueError(
                f"--tasks: {task} is none of the {len(manager.all_tasks)} tasks that lm-eval "
                f"{version('lm_eval')} and {', '.join(map(str, manager.include_path))} hold{similar}. "
                "'lm_eval ls tasks' lists lm-eval's; --include_path adds your own"
            )
    loaded = {}
    for name, (task, shots) in split.items():
        try:
            found = manager.load([task])
        # datasets raises these without a network, and for a data set that wants to run code
        except (OSError, ValueError) as error:
            raise ValueError(
                f"--tasks: the data of {task} cannot be loaded ({str(error).splitlines()[0]}). Without a "
                "network: load them once where there is one and bring the folder of HF_HOME along, or point "
                "a task of your own at local files (--include_path)"
            ) from error
        whole = found["groups"].get(task)
        loaded[name] = ([whole] if whole else list(found["tasks"].values()), int(shots) if shots else None)
    return loaded


def load_model(model: Model, options: argparse.Namespace):
    """lm-eval's HFLM. Raises ValueError where the model cannot be loaded."""
    import torch  # here, as the next two: lm-eval is optional, and --help need not wait for the others
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoConfig

    device = "cuda" if torch.cuda.is_available() else "cpu"
    is_bf16 = options.precision == "bf16" or (options.precision == "auto" and device == "cuda")
    source = {"revision": model.revision or "main", "trust_remote_code": options.trust_remote_code}
    try:
        AutoConfig.from_pretrained(model.name, **source)
    except (OSError, ValueError) as error:
        what = f"{model.name}, the base model of {options.model}," if model.adapter else model.name
        raise ValueError(
            f"--model: {what} is no folder with a model and cannot be had from the hub: {error}"
        ) from error
    return HFLM(
        pretrained=model.name,
        peft=model.adapter,
        tokenizer=model.tokenizer,
        device=device,
        dtype="bfloat16" if is_bf16 else "float32",
        batch_size=options.batch_size,
        **source,
    )


def score(harness, manager, tasks: list, num_fewshot: Optional[int], options: argparse.Namespace) -> dict:
    """lm-eval's results of ``tasks`` without the samples, after printing its table of them."""
    import lm_eval  # optional
    from lm_eval.utils import make_table

    found = lm_eval.simple_evaluate(
        model=harness,
        task_manager=manager,
        tasks=tasks,
        num_fewshot=num_fewshot,
        batch_size=options.batch_size,
        limit=options.limit,
        apply_chat_template=options.apply_chat_template,
        log_samples=False,
    )
    print(make_table(found))
    if found.get("groups"):
        print(make_table(found, "groups"))
    kept = ("results", "groups", "group_subtasks", "versions", "n-shot", "n-samples", "higher_is_better")
    return {key: found[key] for key in kept if key in found}


def headline(model: str, scores: dict[str, dict]) -> dict:
    """The last line's object: nothing but numbers, of a group its own, of anything else those of its
    tasks."""
    means = {}
    for name, found in scores.items():
        task = name.partition(":")[0]
        rows = {task: found["results"][task]} if task in found["results"] else found["results"]
        means[name] = {
            row: {key: value for key, value in of.items() if isinstance(value, float)}
            for row, of in rows.items()
        }
    return {"model": model, "tasks": means}


def settings(options: argparse.Namespace) -> dict:
    names = ("limit", "batch_size", "precision", "apply_chat_template", "trust_remote_code")
    return {name: getattr(options, name) for name in names}


def run() -> None:
    """Run ``main`` as a program."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())


if __name__ == "__main__":
    run()
