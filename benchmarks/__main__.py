"""This project and its peers, side by side, in one run on a Redis of its own.

    python -m benchmarks [--quick] [--only ours,huey] [--measure drain_100,latency] [--rounds 3]
                         [--json FILE] [--svg [FILE]] [--markdown FILE] [--check]

Systems take turns within a round, and medians over the rounds are shown, since a machine is noisy: only ratios of one
run count. Peers are installed into environments of their own under ~/.cache/queue-system/benchmarks at first use.
"""

from __future__ import annotations

import argparse
import pathlib
import sys

from benchmarks import measurements
from benchmarks.goals import check_goals
from benchmarks.machine import names_of
from benchmarks.markdown import markdown
from benchmarks.measurements import Measurement
from benchmarks.picture import draw
from benchmarks.results import Results
from benchmarks.rounds import run
from benchmarks.systems import ALL as SYSTEMS
from benchmarks.systems import VARIANTS, System
from benchmarks.tables import show, show_goals

DEFAULT_SVG = "docs/performance.svg"


def main() -> int:
    options = parse()
    if options.show:
        results = Results.load(options.show)
    else:
        results = run(
            chosen_systems(options.only, variants=options.variants and not options.quick),
            chosen_measurements(options.measure, quick=options.quick),
            measurements.QUICK if options.quick else measurements.FULL,
            rounds=options.rounds or (1 if options.quick else 3),
            limits=not options.measure or "limits" in options.measure,
            save=options.json,
        )
    show(results)
    goals = check_goals(results)
    show_goals(goals)
    if options.json:
        results.save(options.json, goals)
    if options.markdown:
        pathlib.Path(options.markdown).write_text(markdown(results, goals))
    if options.svg:
        draw(results, options.svg)
    return int(options.check and not all(goal.held for goal in goals if goal.held is not None))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    names = [system.name for system in SYSTEMS]
    parser.add_argument("--only", type=names_of(names), help=f"systems, of {', '.join(names)}; default: all")
    measures = [one.name for one in measurements.ALL] + ["limits"]
    parser.add_argument("--measure", type=names_of(measures), help=f"of {', '.join(measures)}; default: all")
    parser.add_argument("--rounds", type=int, help="default: 3, with --quick 1")
    parser.add_argument("--quick", action="store_true", help="one round, fewer jobs, no variants, one process")
    parser.add_argument("--json", metavar="FILE", help="write all figures there, after each round")
    parser.add_argument("--svg", metavar="FILE", nargs="?", const=DEFAULT_SVG, help=f"default: {DEFAULT_SVG}")
    parser.add_argument("--markdown", metavar="FILE", help="write the tables of docs/performance.md there")
    parser.add_argument("--show", metavar="FILE", help="measure nothing, show what --json has written")
    parser.add_argument("--check", action="store_true", help="exit code 1 when a goal is not held")
    parser.add_argument(
        "--no-variants", dest="variants", action="store_false",
        help=f"without {', '.join(one.name for one in VARIANTS)}, unless named in --only",
    )  # fmt: skip
    return parser.parse_args(arguments)


def chosen_systems(only: list[str] | None, *, variants: bool) -> list[System]:
    """Those named in `only`; without it all, and with or without the variants of this project."""
    if only:
        return [system for system in SYSTEMS if system.name in only]
    return [system for system in SYSTEMS if variants or system not in VARIANTS]


def chosen_measurements(only: list[str] | None, *, quick: bool) -> list[Measurement]:
    """Those named in `only`; without it all, but for several processes in a quick run."""
    if only:
        return [one for one in measurements.ALL if one.name in only]
    return [one for one in measurements.ALL if not (quick and one.name.startswith("scale_"))]


if __name__ == "__main__":
    sys.exit(main())
