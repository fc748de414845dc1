"""Writes ``grafana/dashboards/*.json``: ``python -m grafana.build``; with ``--check`` it only tells what is stale."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

from grafana import capacity, detail, health, overview

DIRECTORY: Final = Path(__file__).with_name("dashboards")


def dashboards() -> dict[str, dict[str, Any]]:
    """The dashboards by the names of their files."""
    built = (module.build() for module in (overview, capacity, detail, health))
    return {f"{dashboard['uid']}.json": dashboard for dashboard in built}


def rendered() -> dict[str, str]:
    """What each file must contain."""
    return {name: json.dumps(board, indent=2, ensure_ascii=False) + "\n" for name, board in dashboards().items()}


def stale(directory: Path = DIRECTORY) -> list[str]:
    """Files that are missing, that differ, or that no dashboard belongs to any more."""
    wanted = rendered()
    there = {path.name: path.read_text(encoding="utf-8") for path in directory.glob("*.json")}
    return sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))


def write(directory: Path = DIRECTORY) -> list[str]:
    """Bring the directory up to date; returns the names of the files that changed."""
    changed, wanted = stale(directory), rendered()
    for name in changed:
        if name in wanted:
            (directory / name).write_text(wanted[name], encoding="utf-8")
        else:
            (directory / name).unlink()
    return changed


def main(arguments: list[str]) -> int:
    """Returns 1 when ``--check`` finds something stale."""
    if arguments == ["--check"]:
        names = stale()
        sys.stdout.writelines(f"stale: {name}; run `make dashboards`\n" for name in names)
        return int(bool(names))
    if arguments:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    sys.stdout.writelines(f"changed {name}\n" for name in write())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
