"""A TCP relay that loses the replies of enqueues, after the test has done what may happen in the meantime."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Any, Final, Self

_ENQUEUE: Final = b"sent:"  # of the key that no other script has
_SECONDS: Final = 30.0


class Relay:
    """Passes connections on to a port of this machine. Ends with its ``with`` block.

    Attributes:
        losses: how many replies of enqueues are still to be lost, each with its connection.
        meanwhile: called when Redis has carried out such an enqueue, before its connection is cut.
        requests: how many enqueues came through, those that were sent again included.
        target: the port that new connections are passed on to; those that stand stay where they are.
    """

    def __init__(self, target: int) -> None:
        self.losses, self.requests = 0, 0
        self.meanwhile: Callable[[], Any] = lambda: None
        self.failed: list[Exception] = []
        self.target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._cut(self._listener, *self._sockets)
        for thread in list(self._threads):
            thread.join(_SECONDS)
        assert self.failed == []

    def _start(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self.target))
                self._sockets += [client, server]
                self._start(_Link(self, client, server).up)

    def cut_link(self, *sockets: socket.socket) -> None:
        self._cut(*sockets)

    def start(self, target: Callable[..., None]) -> None:
        self._start(target)

    @staticmethod
    def _cut(*sockets: socket.socket) -> None:
        for each in sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


class _Link:
    def __init__(self, relay: Relay, client: socket.socket, server: socket.socket) -> None:
        self._relay, self._client, self._server = relay, client, server
        self._enqueues = False

    def up(self) -> None:
        self._relay.start(self._down)
        with contextlib.suppress(OSError):
            while data := self._client.recv(65_536):
                if _ENQUEUE in data and not self._enqueues:
                    self._relay.requests += 1
                    self._enqueues = True
                self._server.sendall(data)
        self._relay.cut_link(self._client, self._server)

    def _down(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._server.recv(65_536):
                if data.startswith(b"-NOSCRIPT"):  # nothing was carried out
                    self._relay.requests -= 1
                elif self._enqueues and self._relay.losses > 0:
                    self._lose()
                    break
                self._enqueues = False
                self._client.sendall(data)
        self._relay.cut_link(self._client, self._server)

    def _lose(self) -> None:
        self._relay.losses -= 1
        try:
            self._relay.meanwhile()
        except Exception as error:  # noqa: BLE001  told where the test ends
            self._relay.failed.append(error)
