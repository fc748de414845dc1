"""Three nodes of a real Redis Cluster, and a slot that is moved from one to another."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Self

import redis

from queue_system.embedded import EmbeddedServer

SLOTS: Final = 16_384
NODE: Final = ("--cluster-enabled", "yes", "--cluster-node-timeout", "5000")
"""What makes a server a node."""

_HOST: Final = "127.0.0.1"
_MEETING_SECONDS: Final = 30.0
_MIGRATE_MILLISECONDS: Final = 5_000
_ALL: Final = 1_000_000


class Cluster:
    """Makes a cluster of servers that run as nodes.

    The first one has all slots but the last few: each of the others has one of these, for a node that gives its last
    slot away becomes a replica.

    Args:
        servers: started with `NODE`; closed by whoever has started them.
    """

    def __init__(self, servers: Sequence[EmbeddedServer]) -> None:
        self.servers = tuple(servers)
        self._undo = contextlib.ExitStack()
        self._nodes = {server.port: self._connect(server.port) for server in servers}
        self._ids = {port: node.execute_command("CLUSTER", "MYID") for port, node in self._nodes.items()}
        self._form()

    def close(self) -> None:
        """Close the connections."""
        self._undo.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def slot_of(self, prefix: str) -> int:
        """The slot of a prefix with a hash tag."""
        return int(self._nodes[self.servers[0].port].execute_command("CLUSTER", "KEYSLOT", prefix))

    def open(self, slot: int, source: EmbeddedServer, target: EmbeddedServer) -> None:
        """Begin to move the slot, the classic way: both nodes serve a part of it from now on."""
        self._set_slot(target, slot, "IMPORTING", self._ids[source.port])
        self._set_slot(source, slot, "MIGRATING", self._ids[target.port])

    def move_keys(self, slot: int, source: EmbeddedServer, target: EmbeddedServer, *, prefix: str = "") -> int:
        """Move the keys that begin so; says how many."""
        node, moved = self._nodes[source.port], 0
        for key in node.execute_command("CLUSTER", "GETKEYSINSLOT", slot, _ALL):
            if key.startswith(prefix):
                answer = node.execute_command("MIGRATE", _HOST, target.port, key, 0, _MIGRATE_MILLISECONDS, "REPLACE")
                moved += answer == "OK"  # NOKEY: it has expired
        return moved

    def give(self, slot: int, target: EmbeddedServer) -> None:
        """End the move: the slot is the target's, and every node knows."""
        for server in (target, *(each for each in self.servers if each is not target)):
            self._set_slot(server, slot, "NODE", self._ids[target.port])

    def call_off(self, slot: int, source: EmbeddedServer, target: EmbeddedServer) -> None:
        """The slot stays the source's; what was moved comes back."""
        self._set_slot(source, slot, "STABLE")  # first: else it would send the keys on
        self.move_keys(slot, target, source)
        self._set_slot(target, slot, "STABLE")

    def can_move_at_once(self) -> bool:
        """Whether the servers have ``CLUSTER MIGRATESLOTS``, by which a slot changes hands with all of its keys."""
        answer = self._nodes[self.servers[0].port].execute_command("CLUSTER", "HELP")
        return any(str(line).startswith("MIGRATESLOTS") for line in answer)

    def move_at_once(self, slot: int, source: EmbeddedServer, target: EmbeddedServer) -> None:
        """Move the slot in one step, and wait until it is the target's."""
        self._nodes[source.port].execute_command(
            "CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", self._ids[target.port]
        )
        _until(lambda: self.owner_of(slot, source) == self._ids[target.port], f"slot {slot} at its new node")

    def owner_of(self, slot: int, server: EmbeddedServer) -> str:
        """The id of the node that has the slot, as this server knows it; empty when it knows none."""
        for first, last, owner, *_ in self._nodes[server.port].execute_command("CLUSTER", "SLOTS"):
            if int(first) <= slot <= int(last):
                return str(owner[2])
        return ""

    def _connect(self, port: int) -> redis.Redis:
        # Its answers as they come: redis-py makes something else of those of CLUSTER.
        client = redis.Redis(host=_HOST, port=port, decode_responses=True, socket_timeout=10)
        client.response_callbacks.clear()
        self._undo.callback(client.close)
        return client

    def _form(self) -> None:
        first, *others = self._nodes
        for epoch, node in enumerate(self._nodes.values(), 1):
            node.execute_command("CLUSTER", "SET-CONFIG-EPOCH", epoch)
        self._nodes[first].execute_command("CLUSTER", "ADDSLOTS", *range(SLOTS - len(others)))
        for slot, port in enumerate(others, SLOTS - len(others)):
            self._nodes[port].execute_command("CLUSTER", "ADDSLOTS", slot)
            self._nodes[port].execute_command("CLUSTER", "MEET", _HOST, first)
        _until(self._is_formed, "a cluster that has formed")

    def _is_formed(self) -> bool:
        return all(
            "cluster_state:ok" in node.execute_command("CLUSTER", "INFO")
            and set(self._ids.values()) == _met(node.execute_command("CLUSTER", "NODES"))
            and all(self.owner_of(slot, server) for slot in (0, *range(SLOTS - len(self.servers) + 1, SLOTS)))
            for server, node in zip(self.servers, self._nodes.values(), strict=True)
        )

    def _set_slot(self, server: EmbeddedServer, slot: int, *what: str) -> None:
        self._nodes[server.port].execute_command("CLUSTER", "SETSLOT", slot, *what)


def start_nodes(stack: contextlib.ExitStack, server: Path | None = None, count: int = 3) -> list[EmbeddedServer]:
    """Start so many servers as nodes; the stack ends them."""
    return [stack.enter_context(EmbeddedServer(server=server, extra=NODE)) for _ in range(count)]


def _met(nodes: str) -> set[str]:
    """The ids of those with which a node has shaken hands."""
    rows = [line.split() for line in nodes.splitlines()]
    return {row[0] for row in rows if "handshake" not in row[2]}


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _MEETING_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {_MEETING_SECONDS:g} s: {what}")
        time.sleep(0.02)
