"""Write the tables of README.md, benchmarks/RESULTS.md and docs/ anew from the result files.

    python -m benchmarks.pages

In these pages a table stands between ``<!-- KIND FILE ... -->`` and ``<!-- end -->``, KIND being a function
below and FILE a result file, relative to the repository. What stands between them is never edited by hand.
"""

import json
import re
import sys
from pathlib import Path

import pandas as pd

from benchmarks import plan_table as predictions
from pipeline.comparison import outcome
from pipeline.comparison.budgets import BudgetRow
from pipeline.comparison.statistics import Estimate, Row, rows_of

ROOT = Path(__file__).parents[1]
PAGES = (
    ROOT / "README.md",
    ROOT / "benchmarks" / "RESULTS.md",
    *(ROOT / "docs" / f"{name}.md" for name in ("installing", "planning", "security", "tutorial")),
)
BLOCK = re.compile(r"(<!-- (\w+) ([^>]*?) ?-->\n).*?(<!-- end -->)", re.DOTALL)
PEERS = {"loop": "batch-of-one loop", "vmap": "`vmap(grad)`", "opacus": "opacus", "bergson": "bergson"}


def render(page: str) -> str:
    """The page with all its tables made from the files they name. Raises ValueError for an unknown kind or a
    missing file."""
    return BLOCK.sub(_block, page)


def step_cost(*results: dict) -> str:
    """Scoring + Gram + solve over a plain forward and backward."""
    rows = []
    for result in results:
        settings = result["settings"]
        depth = f", last {settings['last_blocks']} blocks" if settings["last_blocks"] else ""
        ranks = f", {result['world_size']} ranks" if result["world_size"] > 1 else ""
        for case in settings["cases"]:
            found = result[case]
            rows.append(
                [
                    f"{'LoRA' if case == 'lora' else 'full'}, `{settings['backend']}`{depth}{ranks}",
                    f"{settings['candidates']} x {settings['tokens']}",
                    _ranged(found["time_ratio"], found["time_ratio_range"]),
                    f"{found['time_ratio_with_target']:.2f}",
                    f"{found['memory_ratio']:.2f}",
                    str(settings["rounds"]),
                ]
            )
    headings = [
        "",
        "candidates x tokens",
        "time ratio (range)",
        "with the target's pass",
        "peak memory ratio",
        "rounds",
    ]
    return _table(headings, rows)


def cost_curves(result: dict) -> str:
    rows = [
        [
            f"{point['case']}, `{point['backend']}`",
            point["candidates"],
            point["tokens"],
            f"{point['time_ratio']:.2f}",
            f"{point['memory_ratio']:.2f}",
            *(f"{point['seconds'][name][0]:.1f}" for name in ("plain", "scoring")),
        ]
        for point in result["points"]
    ]
    return _table(["", "C", "T", "time ratio", "peak memory ratio", "plain pass, s", "scoring, s"], rows)


def fidelity(result: dict) -> str:
    names = ("spearman", "overlap", "cosine", "reached")
    rows = [
        ["LoRA" if case == "lora" else "full", found["way"], *(f"{found[name]:.2f}" for name in names)]
        for case in result["settings"]["cases"]
        for found in result[case]
    ]
    headings = ["", "", "Spearman of alignments", "overlap of kept", "cosine of updates", "reached"]
    return _table(headings, rows)


def features(*results: dict) -> str:
    """Closeness of the features in scores of a file to the gradients."""
    rows = [
        [
            Path(result["settings"]["model"]).name + (", LoRA" if case == "lora" else ", full"),
            found["way"],
            f"{found['kept']:,}",
            f"{found['alignment']:.2f}",
            f"{found['cosines']:.2f}",
            f"{found['error']:.3f}",
            f"{found['twins']:g}",
        ]
        for result in results
        for case in result["settings"]["cases"]
        for found in result[case]
    ]
    headings = [
        "",
        "",
        "numbers",
        "Spearman of alignments",
        "Spearman of cosines",
        "error",
        "rank of the nearest",
    ]
    return _table(headings, rows)


def packing(*results: dict) -> str:
    """Real tokens per second, packed over padded; by CPU time where there is no GPU, as the cores may be
    shared."""
    rows = []
    for result in results:
        settings, clock = result["settings"], "cpu" if result["device_type"] == "cpu" else "wall"
        for size, found in result["found"].items():
            for what, label in (
                ("scoring", f"scoring of {settings['candidates']}"),
                ("step", f"step on {settings['keep']}"),
            ):
                timed, tokens = found[what][clock], found[what]["tokens"]
                rate = timed["tokens_per_second"]
                rows.append(
                    [
                        f"{label}, {size}",
                        f"{1 - sum(tokens) / sum(found[what]['padded_tokens']):.0%}",
                        f"{rate['padded']:,.0f}",
                        f"{rate['packed']:,.0f}",
                        _ranged(timed["ratio"], timed["ratio_range"]),
                    ]
                )
    return _table(
        ["", "pads when padded", "padded, tokens/s", "packed, tokens/s", "packed / padded (range)"], rows
    )


def token_cache(result: dict) -> str:
    """Seconds until samples are there, and what they take above the libraries."""
    rows = [
        [
            f"{int(num_samples):,}",
            case,
            f"{found['seconds']['wall']:.1f}",
            f"{found['seconds']['cpu']:.1f}",
            f"{found['peak_mib']:,.0f}",
            f"{found['peak_private_mib']:,.0f}",
            f"{found['file_mib']:,.0f}",
            f"{found['step_milliseconds']:.2f}",
        ]
        for num_samples, cases in result["samples"].items()
        for case, found in cases.items()
    ]
    headings = [
        "samples",
        "",
        "seconds",
        "CPU seconds",
        "peak MiB",
        "of these private",
        "file, MiB",
        "candidates of a step, ms",
    ]
    return _table(headings, rows)


def peers(result: dict) -> str:
    """Time and memory over ours."""
    rows = []
    for case in result["settings"]["cases"]:
        found = result[case]["peers"]
        ranged = [
            _ranged(found[name]["time_ratio_to_ours"], found[name]["time_ratio_range"]) for name in PEERS
        ]
        memory = [f"{found[name]['memory_ratio_to_ours']:.2f}" for name in PEERS]
        label = "LoRA" if case == "lora" else "full fine-tuning"
        rows += [[f"{label}, time", *ranged], [f"{label}, memory", *memory]]
    return _table(["", *PEERS.values()], rows)


def solve(result: dict) -> str:
    sizes = {int(size): found["median_seconds"] for size, found in result["sizes"].items()}
    return _table(
        ["candidates", *map(str, sizes)],
        [["rank 0's solve", *(f"{1000 * seconds:,.1f} ms" for seconds in sizes.values())]],
    )


def scaling(result: dict) -> str:
    """Modelled seconds of a selection by number of ranks."""
    ranks, rows = (1, 8, 64, 512), dict[str, dict[int, str]]()
    for point in result["modelled"]:
        rows.setdefault(f"{point['case']}, `{point['backend']}`", {})[point["world_size"]] = (
            f"{point['selection_seconds']:.1f}"
        )
    return _table(["ranks", *ranks], [[name, *(seconds[n] for n in ranks)] for name, seconds in rows.items()])


def soak(result: dict) -> str:
    """Levels of a long run's series, and the rise of their floors."""
    rows = [
        [
            name.replace("_", " ").replace("mib", "MiB"),
            *(f"{found[key]:,.1f}" for key in ("lowest", "mean", "highest", "rise_of_floor_per_hour")),
        ]
        for name, found in result["series"].items()
    ]
    return _table(
        [
            f"{result['minutes']:.0f} minutes, {result['steps']:,} steps",
            "lowest",
            "mean",
            "highest",
            "rise of the floor an hour",
        ],
        rows,
    )


def quickstart(results: list) -> str:
    """Summary of the quickstart, in few columns."""
    rows = [
        [
            run["label"],
            f"{run['loss_before']:.3f}",
            f"{run['loss_after']:.3f}",
            f"{run['damaged_kept']:.1%}",
            f"{run['target_kept']:.1%}",
            f"{run['step_seconds']:.2f}",
            f"{run['selection_share']:.0%}",
        ]
        for run in results
    ]
    first = results[0]
    pool = f"Pool: {first['damaged_pool']:.1%} damaged, {first['target_pool']:.1%} of the target's kind."
    headings = [
        "run",
        "loss before",
        "loss after",
        "damaged kept",
        "target kept",
        "seconds per step",
        "spent on selection",
    ]
    return f"{_table(headings, rows)}\n\n{pool}"


def plan_table(result: dict) -> str:
    return predictions.markdown(result)


def fuzz_input(result: dict) -> str:
    """Counts of random and hostile input, by kind."""
    names = ("inputs", "accepted", "refused", "crashed")
    rows = [[name, *(f"{kind[key]:,}" for key in names)] for name, kind in result["kinds"].items()]
    table = _table(["", *names], [*rows, ["all", *(f"{result[key]:,}" for key in names)]])
    return f"{table}\n\n{result['date']}, {', '.join(f'{k} {v}' for k, v in result['versions'].items())}."


def versions(result: dict) -> str:
    """Versions of packages at both ends of the requirements, and how the tests ended with them."""
    names = dict.fromkeys(name for found in result.values() for name in found["versions"])
    rows = [["Python", *(found["python"] for found in result.values())]]
    rows += [[name, *(found["versions"].get(name, "-") for found in result.values())] for name in names]
    ended = (
        f"{found['passed']} passed, {len(found['failed'])} failed, {found['skipped']} skipped"
        for found in result.values()
    )
    dates = (found["date"] for found in result.values())
    return _table(["", *result], [*rows, ["tests", *ended], ["on", *dates]])


def comparison(result: dict) -> str:
    """The tables that ``pipeline.compare`` prints, and its notes."""
    rows, cells = _rows(result), pd.DataFrame(result["cells"])
    names = [row.variant for row in rows]
    versions_of = result["environment"].get("versions", {})
    counts = f"{len(names)} variants, {len(result['targets'])} target(s), {cells['seed'].nunique()} seeds"
    return "\n\n".join(
        [
            f"{len(cells)} runs: {counts}.",
            _columns(names, outcome.equal_samples(rows, result["best_baseline"])),
            *([by_target(result)] if len(result["targets"]) > 1 else []),
            _columns(names, outcome.in_equal_time(rows, _clock(result))),
            *([by_budget(result)] if result.get("budgets") else []),
            _columns(names, outcome.what_was_kept(rows, cells)),
            "\n".join(f"- {note}" for note in result["notes"]),
            f"Versions: {', '.join(f'{name} {version}' for name, version in versions_of.items())}.",
        ]
    )


def by_target(result: dict) -> str:
    """Mean held-out loss over the run, by variant and target."""
    names = list(result["variants"])
    columns = [
        (target, [_with_error(Estimate(**row[name]["auc"])) if name in row else "-" for name in names])
        for target, row in result["targets"].items()
    ]
    return _columns(names, columns)


def time_by_target(result: dict) -> str:
    """Time until random's final loss, in units of random's whole run, and the final loss, by target."""
    names = list(result["variants"])
    columns = [
        (target, [_time_and_final(row[name]) if name in row else "-" for name in names])
        for target, row in result["targets"].items()
    ]
    return _columns(names, columns)


def _time_and_final(row: dict) -> str:
    """'0.39, 1.700'; '> 0.39' where not every pair has reached random's final loss."""
    is_bound = row["num_reached"] < row["num_pairs"]
    return f"{'> ' if is_bound else ''}{row['time_to_random']['mean']:.2f}, {row['final']['mean']:.3f}"


def by_budget(result: dict) -> str:
    """Final held-out loss of runs with a budget of random's time, and what they took of it."""
    names = list(result["variants"])
    rows = [
        BudgetRow(**{**row, "final": Estimate(**row["final"]), "cost": Estimate(**row["cost"])})
        for row in result["budgets"]
    ]
    return _columns(names, outcome.by_budget(names, rows))


def standings(result: dict) -> str:
    """Variants of a comparison in few columns."""
    rows = _rows(result)
    shown = dict(
        [
            *outcome.equal_samples(rows, result["best_baseline"]),
            *outcome.in_equal_time(rows, _clock(result)),
            *outcome.what_was_kept(rows, pd.DataFrame(result["cells"])),
        ]
    )
    names = (
        "auc",
        "final",
        "auc minus\nrandom's",
        "s per\nstep",
        "step\nprice",
        "time to\nrandom's",
        "in random's\ntime",
        "damaged\nkept",
        "target\nkept",
    )
    return _columns([row.variant for row in rows], [(name, shown[name]) for name in names if name in shown])


def verdict(result: dict) -> str:
    """The verdict of a comparison, as a quotation."""
    return f"> {result['verdict']}"


def machine(*results: dict) -> str:
    """Machines and versions of the results, each once."""
    known = {json.dumps(result["machine"], sort_keys=True): result["machine"] for result in results}
    return "\n".join(
        f"- {m['device']}, {m['threads']} thread(s), Python {m['python']}, "
        f"{', '.join(f'{k} {v}' for k, v in m['versions'].items())}, {m['date']}"
        for m in known.values()
    )


TABLES = (
    step_cost,
    cost_curves,
    fidelity,
    features,
    packing,
    token_cache,
    peers,
    solve,
    quickstart,
    scaling,
    soak,
    plan_table,
    fuzz_input,
    versions,
    comparison,
    by_target,
    time_by_target,
    by_budget,
    standings,
    verdict,
    machine,
)
KINDS = {table.__name__: table for table in TABLES}


def _block(match: re.Match) -> str:
    start, kind, files, end = match.groups()
    if kind not in KINDS:
        raise ValueError(f"<!-- {kind} -->: tables are made by {', '.join(KINDS)}")
    results = []
    for name in files.split():
        path = ROOT / name
        if not path.is_file():
            raise ValueError(f"<!-- {kind} -->: there is no result file {name}")
        results.append(json.loads(path.read_text()))
    return f"{start}{KINDS[kind](*results)}\n{end}"


def _rows(result: dict) -> list[Row]:
    """Rows of a comparison, made from its cells, so that older files too have all that a row now has."""
    cells = pd.DataFrame(result["cells"])
    return rows_of(
        cells, list(result["variants"]), result["reference"], result["best_baseline"], _clock(result)
    )


def _clock(result: dict) -> str:
    """The clock of a comparison; results of earlier versions are of the wall clock."""
    return result.get("clock", "wall")


def _with_error(value: Estimate) -> str:
    if value.mean is None:
        return "-"
    return f"{value.mean:.3f}" + (f" ±{value.error:.3f}" if value.error is not None else "")


def _columns(names: list[str], columns: outcome.Columns) -> str:
    headings = ["variant", *(heading.replace("\n", " ").replace("- ", "") for heading, _ in columns)]
    return _table(headings, [[name, *(cells[i] for _, cells in columns)] for i, name in enumerate(names)])


def _ranged(value: float, between: list[float]) -> str:
    low, high = between
    return f"{value:.2f} ({low:.2f}-{high:.2f})" if low != high else f"{value:.2f}"


def _table(headings: list, rows: list[list]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def main() -> int:
    for page in PAGES:
        try:
            page.write_text(render(page.read_text()))
        except ValueError as error:
            print(f"{page.name}: {error}", file=sys.stderr)
            return 2
        print(f"written: {page.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
