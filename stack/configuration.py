"""The configuration of the native Prometheus: the committed one, with the addresses of this machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).parents[1]
PROMETHEUS: Final = ROOT / "prometheus"
ALERTMANAGER: Final = PROMETHEUS / "alertmanager" / "alertmanager.yml"


def write(
    directory: Path, *, queue_system: Sequence[str], prometheus: str, alertmanager: str | None, interval: int
) -> Path:
    """Write Prometheus's configuration into the directory.

    Args:
        directory: where to; the rules stay where they are.
        queue_system: ``host:port`` of the workers and of the application.
        prometheus: its own ``host:port``.
        alertmanager: ``host:port``, None without one.
        interval: seconds between scrapes.

    Returns:
        The file.
    """
    configuration: dict[str, Any] = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    configuration["global"] |= {"scrape_interval": f"{interval}s", "scrape_timeout": f"{interval}s"}
    configuration["rule_files"] = [str(PROMETHEUS / pattern) for pattern in configuration["rule_files"]]
    targets = {"queue-system": list(queue_system), "prometheus": [prometheus]}
    for scrape in configuration["scrape_configs"]:
        scrape.pop("file_sd_configs", None)
        scrape["static_configs"] = [{"targets": targets[scrape["job_name"]]}]
    told = [] if alertmanager is None else [{"static_configs": [{"targets": [alertmanager]}]}]
    configuration["alerting"] = {"alertmanagers": told}
    path = directory / "prometheus.yml"
    path.write_text(json.dumps(configuration, indent=2))  # which is YAML too
    return path
