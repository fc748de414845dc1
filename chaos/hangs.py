"""A sync processor that never returns, as a read from a socket without a time limit does not."""

from __future__ import annotations

import socket
from typing import Any

from chaos.processors import ledger
from queue_system.context import OperationContext


def read_for_ever(_: dict[str, Any], context: OperationContext) -> None:
    """Read from a peer that says nothing."""
    ledger().start(context.operation_id, str(context.attempt))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.recv(1)
