"""Put the tables of what was measured into the READMEs: between `<!-- table: NAME -->` and `<!-- end -->`.

    python scripts/update_readme.py            # PYTHONPATH = a HunyuanVideo-1.5 tree with the kit, the kit, its scripts

Every table is what the commands named beside it in the README print of the files in assets/.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from benchmark_counts import table as counts_table
from benchmark_rules import table as rules_table
from measure_quality import budget_table, full_table, merged, rows_of
from plan_demo_masks import BUDGETS, GRAPHS
from scipy.stats import spearmanr

from lemica.edges import work_for
from lemica.graph import read_graph

REPOSITORY = Path(__file__).resolve().parents[1]
READMES = tuple(REPOSITORY / name for name in ("README.md", "README_CN.md"))
MEASUREMENTS, MASKS = REPOSITORY / "assets" / "measurements", REPOSITORY / "assets" / "demo_masks"
BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def steering() -> Iterator[str]:
    """What comes out of what was asked for, of videos that were drawn, decoded and generated."""
    rates = json.loads((MEASUREMENTS / "steering.json").read_text())["rates"]
    yield "| share of videos | shape | colour | motion | all three |"
    yield "|---|---|---|---|---|"
    for name, row in rates.items():
        yield f"| {name} | {' | '.join(f'{share:.0%}' for share in row.values())} |"


def calibration() -> Iterator[str]:
    """What exact and fast edges of the same samples cost, and how well they agree."""
    yield "| demo model, one thread, a sample | forwards | seconds | Spearman with exact edges |"
    yield "|---|---|---|---|"
    for num_steps in (steps for steps in BUDGETS if (MASKS / f"exact_t2v_{steps}.json").exists()):
        exact = read_graph(MASKS / f"exact_t2v_{num_steps}.json")
        for kind in ("exact", "same"):
            name = f"{kind}_t2v_{num_steps}"
            cost = json.loads((MASKS / f"{name}.time.json").read_text())
            forwards = work_for(GRAPHS[name].edges, num_steps, GRAPHS[name].max_gap).forwards(num_steps)
            weights = [
                [weight for *_, weight in graph.edges()] for graph in (exact, read_graph(MASKS / f"{name}.json"))
            ]
            agreement = "" if kind == "exact" else f"{spearmanr(*weights)[0]:.3f}"
            seconds = cost["seconds"] / cost["samples"]
            yield f"| {GRAPHS[name].edges}, {num_steps} steps, gaps to 8 | {forwards} | {seconds:.0f} | {agreement} |"


def quality(files: str, table: Callable, against: str | None = "fewer steps") -> Iterable[str]:
    """A table of scripts/measure_quality.py."""
    return table(list(rows_of(merged(sorted(MEASUREMENTS.glob(files))), against)))


def planners(table: Callable) -> Iterable[str]:
    """All masks with residual + hold, and sampling with fewer steps, on the pairs on which the planner was measured."""
    measured = merged(sorted(MEASUREMENTS.glob("t2v_planner_pairs_*.json")))
    reported = merged(sorted(MEASUREMENTS.glob("t2v_pairs_*.json")))
    pairs = {pair: reported.get(pair, {}) | rows for pair, rows in measured.items()}
    rows = rows_of(pairs, "fewer steps")
    return table([row for row in rows if row.key.endswith(("residual + hold", "fewer steps"))])


def benchmark() -> Iterator[str]:
    """What scripts/benchmark.py measured: steps and loops of the kit, and the released kit beside it."""
    columns = ("blocks, tokens, cache", "B", "full step", "reused step", "of a full one", "loop", "of N/B")
    memory = ("held, x residual", "held after", "peak above uncached")
    yield f"| {' | '.join((*columns, 'computed steps', *memory))} |"
    yield "|---" * 11 + "|"
    for name in ("tiny", "cpu"):
        result = json.loads((MEASUREMENTS / f"benchmark_{name}.json").read_text())
        for row in result["rows"][1:]:
            memory, uncached = result["memory"][row["way"]], result["memory"]["uncached"]["peak"]
            held, after, peak = (
                size / result["residual_bytes"] for size in (memory["held"], memory["after"], memory["peak"] - uncached)
            )
            yield (
                f"| {result['preset']['blocks']}, {result['image_tokens']}, {row['way']} | {row['budget']} "
                f"| {row['full_step'] * 1e3:.1f} ms | {row['reused_step'] * 1e3:.2f} ms | {row['of_full']:.2%} "
                f"| {row['speedup']:.2f}x | {row['of_ideal']:.1%} ± {row['of_ideal_error']:.1%} | {row['share']:.1%} "
                f"| {held:.1f} | {after:.1f} | {peak:.1f} |"
            )


def counts() -> Iterable[str]:
    """What scripts/benchmark_counts.py counted."""
    return counts_table(json.loads((MEASUREMENTS / "counts_720p.json").read_text()))


def rules() -> Iterable[str]:
    """What scripts/benchmark_rules.py measured."""
    return rules_table(json.loads((MEASUREMENTS / "benchmark_rules.json").read_text()))


TABLES = {
    "steering": steering,
    "calibration": calibration,
    "t2v": partial(quality, "t2v_pairs_*.json", budget_table),
    "t2v_full": partial(quality, "t2v_pairs_*.json", full_table),
    "i2v": partial(quality, "i2v_pairs_*.json", budget_table),
    "i2v_full": partial(quality, "i2v_pairs_*.json", full_table),
    "planner": partial(planners, budget_table),
    "planner_full": partial(planners, full_table),
    "tuning": partial(quality, "t2v_tuning_pairs_*.json", budget_table, None),
    "benchmark": benchmark,
    "counts": counts,
    "rules": rules,
}


def with_tables(text: str) -> str:
    """A README with every table made anew; raises KeyError for a name that is not in TABLES."""
    return BLOCK.sub(lambda block: f"{block[1]}{chr(10).join(TABLES[block[2]]()).rstrip()}\n{block[3]}", text)


def main() -> None:
    """Rewrite both READMEs."""
    for path in READMES:
        path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
