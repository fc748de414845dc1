"""Carries out calls on a synchronous client, and nothing else. Thread-safe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import redis
from redis.exceptions import NoScriptError

from queue_system.broker.messages import Call
from queue_system.broker.resend import Resend, read_reply, worth_retrying
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
        self._client: Any = client  # redis-py's execute_command has no types
        self._address = address
        self._tries = tries
        self._scripts = load_scripts() if scripts is None else scripts

    def run(self, call: Call[T]) -> T:
        """Send one call, parse its reply; an idempotent call is tried again when the connection fails."""
        resend = Resend(self._address)
        reply = self._attempt(call, resend)
        return read_reply(call, reply, resend)

    def run_many(self, calls: Sequence[Call[T]]) -> list[T]:
        """Send calls in one round trip; raises the first error, after all were sent."""
        if len(calls) == 1:
            return [self.run(calls[0])]
        try:
            replies = self._send_many(calls)
        except CLIENT_ERRORS as error:
            raise translate(error, self._address) from error
        for reply in replies:
            if isinstance(reply, Exception):
                raise translate(reply, self._address) from reply
        return [call.parse(reply) for call, reply in zip(calls, replies, strict=True)]

    def server_version(self) -> str:
        """``redis_version`` of INFO, or an empty string where the user may not ask."""
        try:
            info: Any = self._client.info("server")
        except redis.exceptions.NoPermissionError:
            return ""
        except CLIENT_ERRORS as error:
            raise translate(error, self._address) from error
        return str(info.get("redis_version", ""))

    def close(self) -> None:
        """Close all connections."""
        self._client.close()
        self._client.connection_pool.disconnect()

    @retry_with_backoff(attempts=lambda self, call, _: self._tries if call.idempotent else 1, retry_if=worth_retrying)
    def _attempt(self, call: Call[Any], resend: Resend) -> Any:
        try:
            return self._send(call)
        except CLIENT_ERRORS as error:
            raise resend.failed(error) from error

    def _send(self, call: Call[Any]) -> Any:
        if call.plain:
            return self._client.execute_command(call.name, *call.args)
        script = self._scripts[call.name]
        try:
            return self._client.execute_command("EVALSHA", script.sha, len(call.keys), *call.keys, *call.args)
        except NoScriptError:  # a new server, or SCRIPT FLUSH: nothing ran
            return self._client.execute_command("EVAL", script.source, len(call.keys), *call.keys, *call.args)

    def _send_many(self, calls: Sequence[Call[Any]]) -> list[Any]:
        pipeline = self._client.pipeline(transaction=False)
        for call in calls:
            script = self._scripts[call.name]
            pipeline.execute_command("EVALSHA", script.sha, len(call.keys), *call.keys, *call.args)
        replies: list[Any] = pipeline.execute(raise_on_error=False)
        return [
            self._send(call) if isinstance(reply, NoScriptError) else reply
            for call, reply in zip(calls, replies, strict=True)
        ]
