"""The demo: real work on real files, checked against a plain loop. Read `processors` first, then `main`."""

from queue_system.demo.main import run

__all__ = ["run"]
