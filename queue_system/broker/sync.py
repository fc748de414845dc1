"""Carries out calls on a synchronous client, and nothing else. Thread-safe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import redis
from redis.exceptions import NoPermissionError, NoScriptError

from queue_system.broker.exchange_sync import Exchange, PipelinedExchange, exchange_of
from queue_system.broker.messages import Call, Meanwhile, nothing
from queue_system.broker.resend import (
    INFO,
    Resend,
    command_of,
    is_cluster,
    is_unknown_command,
    read,
    refusal,
    unsettled,
    version_in,
    worth_retrying,
)
from queue_system.broker.scripts import Script, load_scripts
from queue_system.broker.translate import CLIENT_ERRORS, translate
from queue_system.utils import retry_with_backoff

T = TypeVar("T")


class SyncBroker:
    """Runs `Call`s.

    Raises (every method):
        BrokerUnavailableError: Redis cannot serve now.
        BrokerReplyError: it refused, and would refuse again.
    """

    def __init__(
        self, client: redis.Redis, address: str, *, tries: int = 1, scripts: dict[str, Script] | None = None
    ) -> None:
        self._client: Any = client  # redis-py has no types for info
        self._exchange: Exchange = exchange_of(client)
        self._address = address
        self._tries = tries
        self.is_cluster = False
        """Whether the server is a node of a Redis Cluster, as far as `server_version` has found out."""
        self._scripts = load_scripts() if scripts is None else scripts

    def run(self, call: Call[T]) -> T:
        """Send one call, parse its reply; an idempotent call is tried again when the connection fails."""
        return call.parse(self._attempt(call, Resend(self._address)))

    def run_many(self, calls: Sequence[Call[T]], meanwhile: Meanwhile = nothing) -> list[T]:
        """Send calls in one round trip, on one connection; raises the first error, after all were sent.

        All of them are tried again when the connection fails, if all are idempotent. When it returns, `meanwhile` was
        called.
        """
        resend = Resend(self._address, meanwhile)
        if len(calls) == 1:
            return [calls[0].parse(self._attempt(calls[0], resend))]
        replies = self._attempt_many(calls, resend)
        return [read(call, reply, self._address) for call, reply in zip(calls, replies, strict=True)]

    def server_version(self) -> str:
        """``redis_version`` of INFO, or an empty string where nobody may ask. Notes `is_cluster`."""
        try:
            if isinstance(self._exchange, PipelinedExchange):
                reply = self._client.info("server")
            else:
                reply = self._exchange((INFO,))[0]
            self.is_cluster = is_cluster(reply)
            return version_in(reply)
        except NoPermissionError:
            return ""
        except CLIENT_ERRORS as error:
            if is_unknown_command(error):
                return ""
            raise translate(error, self._address) from error

    def close(self) -> None:
        """Close all connections."""
        self._client.close()
        self._exchange.close()

    @retry_with_backoff(attempts=lambda self, call, _: self._tries if call.idempotent else 1, retry_if=worth_retrying)
    def _attempt(self, call: Call[Any], resend: Resend) -> Any:
        try:
            reply = self._exchange((command_of(call, self._scripts),), resend.meanwhile)[0]
            if isinstance(reply, NoScriptError):  # a new server, or SCRIPT FLUSH: nothing ran
                reply = self._exchange((command_of(call, self._scripts, by_source=True),))[0]
            if isinstance(reply, Exception):
                raise reply
        except CLIENT_ERRORS as error:
            raise resend.failed(error) from error
        return reply

    @retry_with_backoff(
        attempts=lambda self, calls, _: self._tries if all(call.idempotent for call in calls) else 1,
        retry_if=worth_retrying,
    )
    def _attempt_many(self, calls: Sequence[Call[Any]], resend: Resend) -> list[Any]:
        try:
            replies = self._send_many(calls, resend)
            error = refusal(calls, replies)
            if error is not None:
                resend.ambiguous |= any(not isinstance(reply, Exception) for reply in replies)
                raise error
        except CLIENT_ERRORS as error:
            raise resend.failed(error) from error
        return replies

    def _send_many(self, calls: Sequence[Call[Any]], resend: Resend) -> list[Any]:
        replies = self._exchange([command_of(call, self._scripts) for call in calls], resend.meanwhile)
        again = unsettled(calls, replies)
        if again:
            commands = [command_of(calls[i], self._scripts, by_source=True) for i in again]
            for i, reply in zip(again, self._exchange(commands), strict=True):
                replies[i] = reply
        return replies
