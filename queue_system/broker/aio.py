"""Carries out calls on an asyncio client, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any, TypeVar

import redis.asyncio as aioredis
from redis.exceptions import NoPermissionError, NoScriptError, ResponseError

from queue_system.broker.exchange import DirectExchange, Exchange, PipelinedExchange, exchange_of
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
from queue_system.errors import BrokerReplyError, QueueError
from queue_system.utils import retry_with_backoff

T = TypeVar("T")


class AsyncBroker:
    """Runs `Call`s; the twin of `sync.SyncBroker`, with the same errors."""

    def __init__(
        self,
        client: aioredis.Redis,
        address: str,
        *,
        tries: int = 1,
        scripts: dict[str, Script] | None = None,
        connections: int | None = None,
    ) -> None:
        self._client: Any = client  # redis-py has no types for info
        self._exchange: Exchange = exchange_of(client, connections)
        self._is_bounded = connections is not None
        self.keeps_order = isinstance(self._exchange, DirectExchange)
        """Whether calls of `run_many` that overlap are carried out, and answered, in their order."""
        self._in_order: Exchange = (
            self._exchange.in_order if isinstance(self._exchange, DirectExchange) else self._exchange
        )
        self._address = address
        self._tries = tries
        self.is_cluster = False
        """Whether the server is a node of a Redis Cluster, as far as `server_version` has found out."""
        self._scripts = load_scripts() if scripts is None else scripts
        self._loaded: set[str] = set()

    async def run(self, call: Call[T]) -> T:
        """Send one call, parse its reply; an idempotent call is tried again when the connection fails."""
        return call.parse(await self._attempt(call, Resend(self._address)))

    async def begin_after(self, wait: Call[Any], call: Call[Any]) -> asyncio.Future[list[Any]]:
        """Send a blocking read and, behind it, a call that Redis carries out when that one has ended, whatever came.

        Returns:
            A future for `read_after`. It must be awaited to its end, since the call will be carried out: shield it.

        Raises:
            BrokerUnavailableError: nothing was sent.
        """
        if not isinstance(self._exchange, DirectExchange):  # whether others block one connection only is not known
            return asyncio.ensure_future(self._one_after_the_other(wait, call))
        try:
            return await self._exchange.begin([command_of(one, self._scripts) for one in (wait, call)])
        except CLIENT_ERRORS as error:
            raise translate(error, self._address) from error

    def read_after(self, call: Call[Any], pending: asyncio.Future[list[Any]]) -> tuple[QueueError | None, Any]:
        """What hindered the blocking read, if anything, and the call's result, once `pending` is done.

        The latter is None when the server does not know its script: nothing ran.

        Raises:
            BrokerUnavailableError: the round trip failed; the call may have been carried out.
            BrokerReplyError: Redis refused the call.
        """
        try:
            woken, reply = pending.result()
        except CLIENT_ERRORS as error:
            raise translate(error, self._address) from error
        hindered = translate(woken, self._address) if isinstance(woken, Exception) else None
        if isinstance(reply, NoScriptError):
            return hindered, None
        if isinstance(reply, Exception):
            raise translate(reply, self._address)
        return hindered, call.parse(reply)

    async def _one_after_the_other(self, wait: Call[Any], call: Call[Any]) -> list[Any]:
        return [(await self._exchange([command_of(one, self._scripts)]))[0] for one in (wait, call)]

    async def run_many(self, calls: Sequence[Call[Any]]) -> list[Any | QueueError]:
        """Send calls in one round trip. Each result stands alone: the parsed reply, or the error of that call.

        Raises:
            BrokerUnavailableError: the round trip failed as a whole; any of the calls may have been carried out.
        """
        try:
            replies = await self._send_many(calls, self._in_order)
        except CLIENT_ERRORS as error:
            raise translate(error, self._address) from error
        return [self._result(call, reply) for call, reply in zip(calls, replies, strict=True)]

    def _result(self, call: Call[T], reply: Any) -> T | QueueError:
        if isinstance(reply, Exception):
            return translate(reply, self._address)
        try:
            return call.parse(reply)
        except QueueError as error:
            return error
        except Exception as error:  # noqa: BLE001  one reply that cannot be read must not hide the others
            what = f"{type(error).__name__}: {error}"
            return BrokerReplyError(f"Redis at {self._address} answered {call.name} in an unknown way ({what})")

    async def run_all(self, calls: Sequence[Call[Any]], meanwhile: Meanwhile = nothing) -> list[Any]:
        """As `SyncBroker.run_many`: one round trip, tried again if all are idempotent; raises the first error."""
        meanwhile()  # while Redis is at work, other tasks have their turn
        if len(calls) == 1:
            return [await self.run(calls[0])]
        replies = await self._attempt_many(calls, Resend(self._address))
        return [read(call, reply, self._address) for call, reply in zip(calls, replies, strict=True)]

    async def run_each(self, calls: Sequence[Call[Any]]) -> list[Any | QueueError]:
        """As `run_all`, but for each its result, or its own error: one that is refused hinders no other.

        What failed for a reason that often passes is tried again, and all `plain` calls with it: what they say of
        others must come after them. All must be idempotent.
        """
        sendings = [Resend(self._address) for _ in calls]
        outcomes: list[Any] = [None] * len(calls)
        with contextlib.suppress(QueueError):
            await self._attempt_each(calls, sendings, outcomes, list(range(len(calls))))
        return outcomes

    async def server_version(self) -> str:
        """``redis_version`` of INFO, or an empty string where nobody may ask. Notes `is_cluster`."""
        try:
            if isinstance(self._exchange, PipelinedExchange):
                reply = await self._client.info("server")
            else:
                reply = (await self._exchange((INFO,)))[0]
            self.is_cluster = is_cluster(reply)
            return version_in(reply)
        except NoPermissionError:
            return ""
        except CLIENT_ERRORS as error:
            if is_unknown_command(error):
                return ""
            raise translate(error, self._address) from error

    async def close(self) -> None:
        """Close all connections. Those of a producer stay closed: what is on its way is told so."""
        if self._is_bounded and isinstance(self._exchange, DirectExchange):
            self._exchange.close()
        # redis-py 5.0.1 renamed close() to aclose(); disconnecting the pool works in all.
        await self._client.connection_pool.disconnect(inuse_connections=True)

    def abandon(self) -> None:
        """Let go of all connections: their event loop is closed."""
        if isinstance(self._exchange, DirectExchange):
            self._exchange.abandon()

    @retry_with_backoff(attempts=lambda self, call, _: self._tries if call.idempotent else 1, retry_if=worth_retrying)
    async def _attempt(self, call: Call[Any], resend: Resend) -> Any:
        try:
            reply = await self._send(call, self._exchange)
            if isinstance(reply, Exception):
                raise reply
        except CLIENT_ERRORS as error:
            raise resend.failed(error) from error
        return reply

    @retry_with_backoff(
        attempts=lambda self, calls, _: self._tries if all(call.idempotent for call in calls) else 1,
        retry_if=worth_retrying,
    )
    async def _attempt_many(self, calls: Sequence[Call[Any]], resend: Resend) -> list[Any]:
        try:
            replies = await self._send_many(calls, self._exchange)
            error = refusal(calls, replies)
            if error is not None:
                resend.ambiguous |= any(not isinstance(reply, Exception) for reply in replies)
                raise error
        except CLIENT_ERRORS as error:
            raise resend.failed(error) from error
        return replies

    @retry_with_backoff(attempts=lambda self, *_: self._tries, retry_if=worth_retrying)
    async def _attempt_each(
        self, calls: Sequence[Call[Any]], sendings: Sequence[Resend], outcomes: list[Any], left: list[int]
    ) -> None:
        """Fill in the outcomes of those that are left; raises one that is worth another try, and leaves those over."""
        tried = [calls[i] for i in left]
        try:
            replies = await self._send_many(tried, self._exchange)
        except CLIENT_ERRORS as error:
            replies = [error] * len(tried)
        for i, reply in zip(left, replies, strict=True):
            outcomes[i] = _outcome(calls[i], reply, sendings[i])
        failed = {i: outcomes[i] for i in left if worth_retrying(outcomes[i])}
        left[:] = [i for i in left if i in failed or calls[i].plain]
        if failed:
            raise next(iter(failed.values()))

    async def _send(self, call: Call[Any], exchange: Exchange) -> Any:
        (reply,) = await exchange([command_of(call, self._scripts)])
        if isinstance(reply, NoScriptError):  # a new server, or SCRIPT FLUSH: nothing ran
            (reply,) = await exchange([command_of(call, self._scripts, by_source=True)])
        return reply

    async def _send_many(self, calls: Sequence[Call[Any]], exchange: Exchange) -> list[Any]:
        if len(calls) == 1:
            return [await self._send(calls[0], exchange)]
        # Loaded first: a script that is sent again after NOSCRIPT would run after the claim that must see its effect.
        unknown = {call.name for call in calls if not call.plain} - self._loaded
        commands = [("SCRIPT", "LOAD", self._scripts[name].source) for name in unknown]
        commands += [command_of(call, self._scripts) for call in calls]
        replies = (await exchange(commands))[len(unknown) :]
        self._loaded |= unknown
        again = unsettled(calls, replies)
        if again:
            commands = [command_of(calls[i], self._scripts, by_source=True) for i in again]
            for i, reply in zip(again, await exchange(commands), strict=True):
                replies[i] = reply
        return replies


def _outcome(call: Call[Any], reply: Any, sending: Resend) -> Any | QueueError:
    """What a call came to: its result, or its error."""
    try:
        if not isinstance(reply, Exception):
            return call.parse(reply)
        if call.refused is None or not isinstance(reply, ResponseError):
            return sending.failed(reply)
        return call.refused(translate(reply, sending.address))
    except QueueError as error:  # a reply that cannot be read
        return error
