"""The functions that the demo enqueues, written as an application would write its own.

`@processor` registers a function with the defaults of its operations and leaves it callable: the plain loop, against
which the demo checks its totals, calls the same `measure` and `parse` directly.

An entity is small: the path of a file, never its content. Delivery is at least once, so a processor may run more than
once for one operation; all of these only read.
"""

from __future__ import annotations

import ast
import asyncio
import hashlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from queue_system import OperationContext, QueueRetryConfig, processor

ON_SUCCESS: Final = "demo_succeeded"
ON_FAILURE: Final = "demo_failed"
"""Callbacks may be given by name: `main` registers one under each of these names for every run."""

SOON: Final = QueueRetryConfig.fixed(delay=0.2, max_attempts=3)
"""Three attempts, 0.2 s apart."""

STATEMENTS_AT_A_TIME: Final = 500

_NESTED: Final = ("body", "orelse", "handlers", "finalbody", "cases")
_REFUSALS: Final = (SyntaxError, ValueError, RecursionError, MemoryError)


@processor(retry_config=SOON, on_success=ON_SUCCESS, on_failure=ON_FAILURE)
def measure(entity: dict[str, Any]) -> dict[str, Any]:
    """Digest a file and count its lines and words. A plain function: it runs in the worker's thread pool.

    It counts bytes, so the encoding of the file does not matter. A file that cannot be read is a result, not an error:
    no retry would help.

    Returns:
        ``{"measured": 1, "bytes", "lines", "words", "sha256"}``, or ``{"not_read": 1}``.
    """
    try:
        content = Path(entity["path"]).read_bytes()
    except OSError:
        return {"not_read": 1}
    return {
        "measured": 1,
        "bytes": len(content),
        "lines": len(content.splitlines()),
        "words": len(content.split()),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


@processor(timeout=20, retry_config=SOON, on_success=ON_SUCCESS, on_failure=ON_FAILURE)
async def parse(entity: dict[str, Any]) -> dict[str, int]:
    """Parse a file and count its definitions. A coroutine: it runs on the worker's event loop.

    While a coroutine computes, nothing else on the loop runs, so it lets go wherever it can: it reads in a thread, and
    hands back the loop before and after parsing and every `STATEMENTS_AT_A_TIME` statements. The one step that cannot
    be divided is `ast.parse`, some 0.1 s for the largest files; a thread would not help, as parsing holds the
    interpreter's lock. Where such steps take seconds, use a plain function and more worker processes.

    Returns:
        ``{"parsed": 1, "functions", "classes"}``, or ``{"not_parsed": 1}`` for what Python cannot read, decode or
        understand.
    """
    try:
        content = await asyncio.to_thread(Path(entity["path"]).read_bytes)
        await asyncio.sleep(0)
        tree = _parsed(content)
    except (OSError, *_REFUSALS):
        return {"not_parsed": 1}
    found = {"parsed": 1, "functions": 0, "classes": 0}
    for number, statement in enumerate(_statements(tree)):
        if number % STATEMENTS_AT_A_TIME == 0:
            await asyncio.sleep(0)
        found["functions"] += isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef)
        found["classes"] += isinstance(statement, ast.ClassDef)
    return found


@processor(priority="high", retry_config=SOON, on_success=ON_SUCCESS, on_failure=ON_FAILURE)
async def unsteady(entity: dict[str, Any], context: OperationContext) -> dict[str, Any]:
    """Fail twice, then succeed, like a service that comes back. The context tells which attempt this is."""
    if context.attempt < SOON.max_attempts:
        raise ConnectionError(f"no answer about {Path(entity['path']).name}")
    return {"attempt": context.attempt}


@processor(
    timeout=0.3,
    retry_config=QueueRetryConfig.fixed(delay=0.2, max_attempts=2),
    on_success=ON_SUCCESS,
    on_failure=ON_FAILURE,
)
async def endless(entity: dict[str, Any]) -> None:  # noqa: ARG001  a processor is called with its entity
    """Take an hour: the worker cancels it after its timeout, and gives it up after its last attempt."""
    await asyncio.sleep(3600)


@processor(retry_config=SOON, on_success=ON_SUCCESS, on_failure=ON_FAILURE)
def hopeless(entity: dict[str, Any]) -> None:
    """Fail each time. After its last attempt the operation is kept among the failures, with error and traceback."""
    raise RuntimeError(f"there is no hope for {Path(entity['path']).name}")


def _parsed(content: bytes) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old files may have doubtful escapes: their author's business, not ours
        return ast.parse(content)


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """All statements, nested ones too. Definitions are statements, so expressions need not be looked into."""
    todo: list[ast.AST] = [tree]
    while todo:
        statement = todo.pop()
        yield statement
        for field in _NESTED:
            todo.extend(getattr(statement, field, ()))
