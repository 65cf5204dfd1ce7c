"""Compare selection methods: every variant with every seed on every target, and what they say together.

python -m pipeline.compare --config launch/recipes/compare_quick.yaml [--key value] [--section.key value]

    cells -> runs of pipeline.train -> runs with a budget of random's time, where the grid has budgets
          -> measures of each -> means, errors, differences in pairs -> tables, result file, page
"""

import json
import signal
import sys
from pathlib import Path
from typing import Optional

from pipeline.comparison.grid import parse


def main(arguments: Optional[list[str]] = None) -> int:
    """The exit code: 0; 1 if a cell has failed; 2 where settings or records do not fit together, which a
    sentence explains."""
    grid, cells, notes = parse(__doc__.split("\n\n")[0], sys.argv[1:] if arguments is None else arguments)
    # Not at the top: torch, pandas and matplotlib take seconds to load, and --help and a wrong grid are
    # answered without them.
    from pipeline.comparison import budgets, outcome
    from pipeline.comparison.running import run_cells

    found = None
    try:
        failures = run_cells(cells, grid.parallel, grid.ranks, grid.overwrite)
        failed = [failure.cell for failure in failures]
        if runs := outcome.read([cell for cell in cells if cell not in failed]):
            clock = outcome.clock_of(grid.clock, list(runs.values()))
            plan = budgets.plan(grid.budgets, runs, clock)
            if plan.cells:
                failures += run_cells(plan.cells, grid.parallel, grid.ranks, grid.overwrite)
            failed = [failure.cell for failure in failures]
            later = outcome.read([cell for cell in plan.cells if cell not in failed])
            found = outcome.gather(cells, runs, clock, notes, plan, later)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if found:
        outcome.say(found)
        page = outcome.write(Path(cells[0].folder).parents[2], grid, found, [str(cell) for cell in failed])
        print(f"Results: {page} and {page.with_suffix('.json')}")
    for failure in failures:
        print(f"failed: {failure.cell}: {failure.log}", file=sys.stderr)
    print(
        json.dumps(
            outcome.headline(list(dict.fromkeys(cell.variant for cell in cells)), found), allow_nan=False
        ),
        flush=True,
    )
    return 1 if failures else 0


def run() -> None:
    """Run ``main`` as a program, which ends the processes of its cells when it is ended."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception, on which run_cells ends them
    sys.exit(main())


if __name__ == "__main__":
    run()
