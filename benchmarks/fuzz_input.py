"""Feed random, broken and hostile input to everything that reads a user's files, and count what comes of it.

    python -m benchmarks.fuzz_input --inputs 20000

An input is accepted, or refused with a sentence that names the file (and the line, where there are lines) or
the setting; anything else is a crash. Generators and checks are those of the tests
(tests/data/fuzz_cases.py), which try fewer inputs.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from datetime import date
from importlib.metadata import version
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tests.data.fuzz_cases import CHATS, GOOD_CHATS, KINDS, Kind, tokenizers, try_chat

RESULT = Path(__file__).parent / "results" / "fuzz_input.json"


def chats_of(folder: str) -> Kind:
    """Chats in the tokenizer of a model."""
    tokenizers()[folder] = AutoTokenizer.from_pretrained(folder)
    return Kind(st.tuples(st.just(folder), st.one_of(GOOD_CHATS, CHATS)), try_chat, 0.1)


def run(kind: Kind, num_inputs: int, number: int, folder: Path) -> dict:
    """Counts of one kind; crashes are counted and described, and the rest goes on."""
    counts, crashes = Counter(inputs=0, accepted=0, refused=0, crashed=0), []

    @seed(number)
    @settings(
        max_examples=num_inputs,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(kind.strategy)
    def every(made):
        counts["inputs"] += 1
        try:
            counts.update(kind.attempt(made, folder))
        except Exception as error:
            counts["crashed"] += 1
            crashes.append(f"{type(error).__name__}: {str(error)[:300]} for {repr(made)[:300]}")

    every()
    return {**counts, **({"crashes": crashes[:5]} if crashes else {})}


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--inputs",
        type=int,
        default=20_000,
        help="each kind gets a share of it, 1.2 in all (default: %(default)s)",
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument(
        "--tokenizer", metavar="FOLDER", help="a model's folder: chats are tried in its tokenizer too"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args(arguments)
    kinds = {name: KINDS[name] for name in options.kinds}
    if options.tokenizer:
        kinds["chats in a model's tokenizer"] = chats_of(options.tokenizer)
    begin, found, packages = (
        time.time(),
        {},
        ("transformers", "tokenizers", "pyarrow", "jsonargparse", "pyyaml", "jinja2", "hypothesis"),
    )
    for name, kind in kinds.items():
        with tempfile.TemporaryDirectory() as folder:
            found[name] = run(kind, max(1, round(options.inputs * kind.share)), options.seed, Path(folder))
        print(f"{name}: {found[name]}", flush=True)
        total = {
            key: sum(kind[key] for kind in found.values())
            for key in ("inputs", "accepted", "refused", "crashed")
        }
        result = {
            "date": date.today().isoformat(),
            "seed": options.seed,
            "seconds": round(time.time() - begin),
            **total,
            "kinds": found,
            "versions": {package: version(package) for package in packages},
        }
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if total["crashed"] else 0


if __name__ == "__main__":
    sys.exit(main())
