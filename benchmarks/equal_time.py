"""Equal time: filter_then_weight beside random and what one would use instead, everything charged.

    python -m benchmarks.equal_time --quick    # demo, 3 seeds, 4 variants, no budgets
    python -m benchmarks.equal_time            # the recipes compare_equal_time and compare_equal_time_pool

The quick one takes under 12 minutes on 2 cores and runs all its cells anew. Of the recipes finished cells are
not run again: these know their settings and data, not the code.

The last line is JSON: for each variant of the demo ``time_to_random``, ``step_price`` and ``final``, means
over seeds. Where a seed does not get to random's final loss, the time is null, and ``time_to_random_above`` a
lower bound of it. Without --quick result files and figures go to benchmarks/results/.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Optional

import yaml

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "launch" / "recipes"
RESULTS = ROOT / "benchmarks" / "results"
QUICK = ("random", "bm25", "learned", "filter_then_weight")
SHOWN = ("time_to_random", "time_to_random_above", "step_price", "final")


def quick_grid() -> dict:
    """The recipe for the demo with a part of its variants and seeds, and without budgets."""
    grid = yaml.safe_load((RECIPES / "compare_equal_time.yaml").read_text())
    return {
        **grid,
        "variants": {name: grid["variants"][name] for name in QUICK},
        "seeds": [0, 1, 2],
        "budgets": [],
        "folder": "runs/equal_time_quick",
    }


def compare(config: Path) -> dict:
    """What pipeline.compare prints as its last line. Raises SystemExit, with its code, where it fails."""
    environment = {"DS_ACCELERATOR": "cpu", **os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pipeline.compare", "--config", str(config)]
    program = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    last = ""
    for line in program.stdout:
        print(last, end="", flush=True)
        last = line
    if code := program.wait():
        raise SystemExit(code)
    return json.loads(last)


def headline(found: dict) -> dict:
    """The numbers of equal time, without a lower bound where none is needed."""
    return {
        variant: {
            name: numbers[name]
            for name in SHOWN
            if name != "time_to_random_above" or numbers[name] is not None
        }
        for variant, numbers in found.items()
    }


def keep(name: str) -> None:
    """Copy the result file and the figures of a recipe to benchmarks/results/."""
    folder, kept = ROOT / "runs" / name, RESULTS / name
    kept.mkdir(parents=True, exist_ok=True)
    for file in (folder / "comparison.json", *(folder / "figures").glob("*_curves.png")):
        shutil.copyfile(file, kept / file.name)
        print(f"written: {(kept / file.name).relative_to(ROOT)}")


def main(arguments: Optional[list[str]] = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.equal_time", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a part of the demo's grid")
    if parser.parse_args(arguments).quick:
        shutil.rmtree(ROOT / quick_grid()["folder"], ignore_errors=True)
        config = ROOT / "runs" / "equal_time_quick.yaml"
        config.parent.mkdir(exist_ok=True)
        config.write_text(yaml.safe_dump(quick_grid(), sort_keys=False))
        found = compare(config)
    else:
        found = compare(RECIPES / "compare_equal_time.yaml")
        keep("compare_equal_time")
        if {"DATA", "TEST"} <= set(os.environ):
            compare(RECIPES / "compare_equal_time_pool.yaml")
            keep("compare_equal_time_pool")
        else:
            print("compare_equal_time_pool is left out: it needs DATA and TEST, as its recipe says")
    print(json.dumps(headline(found)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
