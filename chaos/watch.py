"""A processor that makes its worker note what it imports and which programs it starts, from then on."""

from __future__ import annotations

import sys
from typing import Any, Final

from chaos import processors
from queue_system.context import OperationContext

# `importlib.import_module` tells of a module by the execution of its code ("exec"); an import statement by its name.
WATCHED: Final = frozenset(
    {
        "import",
        "exec",
        "os.system",
        "os.exec",
        "os.posix_spawn",
        "os.fork",
        "subprocess.Popen",
        "pickle.find_class",
    }
)
_state = {"watching": False}


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event in WATCHED and _state["watching"]:
        what = getattr(arguments[0], "co_filename", arguments[0]) if arguments else ""
        processors.ledger().write("audit", "-", event, ascii(what).replace(" ", "_")[:200])


async def watch(entity: dict[str, Any], context: OperationContext) -> None:
    """Start to note; an audit hook cannot be removed, so it stays until the worker ends."""
    if not _state["watching"]:
        sys.addaudithook(_audit)
        _state["watching"] = True
    processors.ledger().write("watching", context.operation_id, str(entity.get("name", "")))


async def import_something(entity: dict[str, Any], context: OperationContext) -> None:
    """Import a module: what the notes must show, or they are worth nothing."""
    import zipapp  # noqa: F401, PLC0415  nothing else has loaded it

    processors.ledger().write("imported", context.operation_id, str(entity.get("name", "")))
