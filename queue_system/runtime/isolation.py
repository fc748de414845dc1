"""When a worker may take a suspect: an operation during which workers have died.

One of what was in flight in a worker that died may kill again. One death may have any cause; from the second on (with
the default `max_crashes`) what was in flight is under suspicion, and runs alone: if the worker dies once more, it was
the suspect, and no innocent neighbour is blamed with it. It runs alone for as long as it had run when its worker died,
at most a minute; whoever outlives that is joined by others again.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class Isolation:
    """Keeps a worker closed while it becomes empty for a suspect, and while one runs alone.

    Args:
        later: given seconds after which the worker may be open again.
        patience: seconds that a worker claims nothing so as to become empty for a suspect. Then the suspect runs beside
            what is left: that has run for so long without harm, and an operation of an hour must not stop all else.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        later: Callable[[float], None],
        *,
        patience: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._later = later
        self._patience = patience
        self._clock = clock
        self._last_taken = -patience
        self._one_waits = False
        self._suspect: int | None = None
        self._alone_until = 0.0

    def may_take(self, held: int) -> bool:
        """Whether a suspect may be claimed by a worker that holds so many operations."""
        return held == 0 or self._clock() >= self._last_taken + self._patience

    def closed(self, held: int) -> bool:
        """Whether nothing may be claimed now."""
        if self._suspect is not None:
            return self._clock() < self._alone_until
        return self._one_waits and not self.may_take(held)

    def met(self, *, one_waits: bool) -> None:
        """What a claim has seen: `one_waits` when a suspect was at the head of a queue and could not be taken."""
        if one_waits and not self._one_waits:
            self._later(max(0.0, self._last_taken + self._patience - self._clock()))
        self._one_waits = one_waits

    def took(self, token: int, alone_for: float) -> None:
        """A suspect was claimed, with this fencing token, to run alone for so many seconds."""
        self._suspect = token
        self._alone_until = self._clock() + alone_for
        self._later(alone_for)

    def took_others(self) -> None:
        """Operations that are under no suspicion were claimed."""
        self._last_taken = self._clock()
        if self._one_waits:
            self._later(self._patience)

    def ended(self, token: int) -> None:
        """The operation of this fencing token is done with."""
        if token == self._suspect:
            self._suspect = None
