"""When a call may be sent again, and how its answer is then to be read. Shared by both brokers."""

from __future__ import annotations

from typing import Any, TypeVar

from queue_system.broker.messages import Call
from queue_system.broker.translate import RETRYABLE, translate
from queue_system.errors import BrokerUnavailableError, QueueError

T = TypeVar("T")


class Resend:
    """The state of one sending: whether an earlier try may have been carried out."""

    __slots__ = ("_address", "ambiguous")

    def __init__(self, address: str) -> None:
        self._address = address
        self.ambiguous = False

    def failed(self, error: Exception) -> QueueError:
        """The package's error for a client's, remembered."""
        translated = translate(error, self._address)
        self.ambiguous |= isinstance(translated, BrokerUnavailableError) and translated.ambiguous
        return translated


def worth_retrying(error: BaseException) -> bool:
    """Whether the same call may succeed within a second: not when Redis is full, read-only or refuses the user."""
    return isinstance(error, BrokerUnavailableError) and error.kind in RETRYABLE


def read_reply(call: Call[T], reply: Any, resend: Resend) -> T:
    """Parse the reply, with regard to whether an earlier try may have been carried out."""
    parse = call.parse_again if resend.ambiguous and call.parse_again is not None else call.parse
    return parse(reply)
