"""Keeps the leases of what this worker holds, in a thread of its own with a connection of its own.

So a processor that blocks the event loop does not lose its lease, up to a limit: a loop that has not moved for
`stall_limit` seconds is given up, renewal stops, and other workers take over.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

from queue_system.broker.commands import Commands
from queue_system.broker.messages import MAX_RENEW, Call
from queue_system.errors import QueueError
from queue_system.runtime.incident import describe_refusal

logger = logging.getLogger("queue_system.leases")

RENEWALS_PER_LEASE: Final = 3
STALL_LIMIT: Final = 60.0


class Broker(Protocol):
    """Carries out a call, or raises `QueueError`."""

    def run(self, call: Call[Any]) -> Any:
        """Send one call, parse its reply."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


class LeaseKeeper:
    """Renews leases and sends the worker's heartbeat, every third of a lease.

    Args:
        connect: makes the thread's broker.
        commands: builds the calls.
        lease: seconds.
        worker_id: for the heartbeat.
        describe: the heartbeat's fields.
        on_lost: told id and token of each lease that is lost; called in the keeper's thread.
        on_error: told each failure to reach Redis; called in the keeper's thread.
        on_contact: told each time that Redis has answered; called in the keeper's thread.
        stall_limit: seconds without `beat` after which renewal stops.
    """

    def __init__(
        self,
        connect: Callable[[], Broker],
        commands: Commands,
        *,
        lease: float,
        worker_id: str,
        describe: Callable[[], dict[str, str]],
        on_lost: Callable[[str, int], None],
        on_error: Callable[[QueueError], None],
        on_contact: Callable[[], None] = lambda: None,
        stall_limit: float = STALL_LIMIT,
    ) -> None:
        self._connect = connect
        self._commands = commands
        self._lease = lease
        self._worker_id = worker_id
        self._describe = describe
        self._on_lost = on_lost
        self._on_error = on_error
        self._on_contact = on_contact
        self._stall_limit = stall_limit
        self._held: dict[tuple[str, int], None] = {}
        self._beat = time.monotonic()
        self.last_contact = 0.0  # Unix time of Redis's last answer
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._turn_began: float | None = None

    @property
    def alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def turning_for(self) -> float:
        """Seconds since the turn began in which the thread is; 0 between two turns."""
        began = self._turn_began
        return 0.0 if began is None else max(0.0, time.monotonic() - began)

    @property
    def held(self) -> int:
        """How many leases are kept."""
        return len(self._held)

    @property
    def stalled_for(self) -> float:
        """Seconds since the event loop last said that it moves."""
        return time.monotonic() - self._beat

    def add(self, leases: Iterable[tuple[str, int]]) -> None:
        """Keep these from now on, each an operation's id and token."""
        self._held.update(dict.fromkeys(leases))

    def remove(self, leases: Iterable[tuple[str, int]]) -> None:
        """These operations are settled: their leases are over."""
        for lease in leases:
            self._held.pop(lease, None)

    def keeps(self, operation_id: str, token: int) -> bool:
        """Whether this lease is kept still."""
        return (operation_id, token) in self._held

    def beat(self) -> None:
        """The event loop moves."""
        self._beat = time.monotonic()

    def start(self) -> None:
        """Start the thread; nothing happens when it runs already."""
        if self._thread is None:
            self._stop.clear()
            self._thread = threading.Thread(target=self._run, name="queue-system-leases", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread after it has signed the worker off; blocks for at most one command."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._stop.set()
            thread.join()

    def _run(self) -> None:
        broker: Broker | None = None
        while True:
            self._turn_began = time.monotonic()
            try:
                broker = broker or self._connect()
                self._turn(broker)
            except BaseException as error:  # noqa: BLE001  whatever it is: without this thread every lease runs out
                self._tell(error)
            self._turn_began = None
            if self._stop.wait(self._lease / RENEWALS_PER_LEASE):
                break
        if broker is None:
            return
        try:
            self._attempt(broker, self._commands.heartbeat(self._worker_id, expiry=0, fields={}))
        except BaseException as error:  # noqa: BLE001  the stop goes on: the heartbeat expires by itself
            self._tell(error)
        finally:
            broker.close()

    def _tell(self, error: BaseException) -> None:
        try:
            told = describe_refusal(error)
            self._on_error(QueueError(f"{told.type}: {told.message}"))
        except BaseException:
            logger.exception("a failure of the lease thread could not be told")

    def _turn(self, broker: Broker) -> None:
        if self.stalled_for < self._stall_limit:
            held = list(self._held)
            for start in range(0, len(held), MAX_RENEW):
                self._renew(broker, held[start : start + MAX_RENEW])
        beat = self._commands.heartbeat(self._worker_id, expiry=max(30.0, 3 * self._lease), fields=self._describe())
        self._attempt(broker, beat)

    def _renew(self, broker: Broker, held: list[tuple[str, int]]) -> None:
        for operation_id, token in self._attempt(broker, self._commands.renew(held, self._lease)) or ():
            if (operation_id, token) in self._held:  # settled in the meantime is not lost
                self._on_lost(operation_id, token)

    def _attempt(self, broker: Broker, call: Call[Any]) -> Any:
        try:
            reply = broker.run(call)
        except QueueError as error:
            self._on_error(error)  # the next turn tries again; meanwhile the reaper's grace protects the leases
            return None
        self.last_contact = time.time()
        self._on_contact()
        return reply
