# ruff: noqa: INP001  a program
"""Writes ``kubernetes/prometheusrule.yaml`` from ``prometheus/rules``: ``python deploy/prometheusrule.py``.

The rules of the Prometheus operator and those that Prometheus reads are the same; only the wrapping differs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).parents[1]
TARGET: Final = ROOT / "deploy" / "kubernetes" / "prometheusrule.yaml"
HEADER: Final = "# Generated from prometheus/rules by deploy/prometheusrule.py: change those, and run it again.\n"


def manifest() -> str:
    """The manifest as it has to be."""
    groups = []
    for path in sorted((ROOT / "prometheus" / "rules").glob("*.yml"), reverse=True):  # recording before alerts
        groups += yaml.safe_load(path.read_text())["groups"]
    resource = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "queue-system", "labels": {"app.kubernetes.io/part-of": "queue-system"}},
        "spec": {"groups": groups},
    }
    return HEADER + yaml.dump(resource, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Expressions of several lines stay readable."""


def _text(dumper: yaml.SafeDumper, text: str) -> Any:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)

if __name__ == "__main__":
    TARGET.write_text(manifest())
    sys.stdout.write(f"{TARGET}\n")
