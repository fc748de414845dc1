"""The side-car's endpoints: ``/metrics``, ``/livez``, ``/readyz``, in a thread of their own.

In a thread, so that a processor that blocks the event loop is seen instead of hiding the scrape. On 127.0.0.1 unless
told otherwise; everything answers GET and HEAD only and changes nothing.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import REGISTRY, CollectorRegistry, make_wsgi_app

from queue_system.errors import ConfigurationError
from queue_system.events import (
    Health,
)

StartResponse = Callable[[str, list[tuple[str, str]]], Any]

DEFAULT_HOST: Final = "127.0.0.1"

MAX_THREADS: Final = 16
"""Requests that are answered at once."""

REQUEST_LIMIT: Final = 10.0
"""Seconds for one request, from its first byte to the last one of its answer."""

_log: Final = logging.getLogger("telemetry.server")
_servers: Final[weakref.WeakSet[SidecarServer]] = weakref.WeakSet()


class SidecarServer:
    """Serves metrics and probes.

    Args:
        health: asked by each probe.
        port: to listen on; 0 for a free one.
        host: an address to listen on, IPv4 or IPv6; 127.0.0.1 by default, ``0.0.0.0`` for every network.
        registry: what ``/metrics`` shows.

    Raises:
        ConfigurationError: the port cannot be listened on.
    """

    def __init__(
        self,
        health: Callable[[], Health],
        *,
        port: int = 9191,
        host: str = DEFAULT_HOST,
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        self._health = health
        self._metrics = make_wsgi_app(registry)
        try:
            self._server = make_server(
                host,
                port,
                self._answer,
                server_class=_Server6 if ":" in host else _Server,
                handler_class=_QuietHandler,
            )
        except (OSError, OverflowError) as error:
            raise ConfigurationError(f"cannot serve metrics on {host}:{port}: {error}; choose another port") from error
        _servers.add(self)
        self._thread = threading.Thread(target=self._server.serve_forever, name="queue-system-sidecar", daemon=True)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """Where it is to be found, e.g. ``http://127.0.0.1:9191``."""
        host = str(self._server.server_address[0])
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def start(self) -> None:
        """Start to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Answer no more, and free the port."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def leave_to_parent(self) -> None:
        """In a process that was forked: let go of the port and the connections, which are the parent's."""
        self._server.leave_to_parent()

    def _answer(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        method = environ.get("REQUEST_METHOD")
        if method not in {"GET", "HEAD"}:
            return _reply(start_response, "405 Method Not Allowed", {"error": "only GET"}, [("Allow", "GET, HEAD")])
        if method == "GET":
            return self._page(environ, start_response)
        started: list[tuple[str, list[tuple[str, str]]]] = []
        body = b"".join(self._page(environ | {"REQUEST_METHOD": "GET"}, lambda *told: started.append(told)))
        status, headers = started[0]
        length = [("Content-Length", str(len(body)))]
        start_response(status, [header for header in headers if header[0] != "Content-Length"] + length)
        return []  # the headers of the page, without the page

    def _page(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "/")
        if path == "/metrics":
            page: Iterable[bytes] = self._metrics(environ, start_response)
            return page
        if path == "/livez":
            health = self._health()
            return _probe(start_response, healthy=health.alive, checks=health.alive_checks)
        if path == "/readyz":
            health = self._health()
            return _probe(start_response, healthy=health.ready, checks=health.ready_checks)
        if path == "/":
            return _reply(start_response, "200 OK", {"endpoints": ["/metrics", "/livez", "/readyz"]})
        return _reply(start_response, "404 Not Found", {"error": "try /metrics, /livez or /readyz"})


class _Server(ThreadingMixIn, WSGIServer):
    """Bounded: whoever comes when all threads are busy takes the place of the one that has been at it for longest."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *args: Any, **options: Any) -> None:
        self._at_work: dict[socket.socket, float] = {}  # the oldest first
        self._lock = threading.Lock()
        super().__init__(*args, **options)

    def leave_to_parent(self) -> None:
        """In a process that was forked: close what is listened on and what was accepted, without a word to a client."""
        self._lock = threading.Lock()  # a thread that is not here may have held it
        for connection in [self.socket, *self._at_work]:
            if connection.fileno() != -1:
                os.close(connection.detach())
        self._at_work.clear()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread."""
        with self._lock:
            if len(self._at_work) >= MAX_THREADS:
                oldest = next(iter(self._at_work))
                del self._at_work[oldest]
                _break(oldest)
            self._at_work[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """It is answered, or given up."""
        with self._lock:
            self._at_work.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Twice a second: give up who takes too long, however busily it sends."""
        limit = time.monotonic() - REQUEST_LIMIT
        with self._lock:
            for request in [request for request, since in self._at_work.items() if since < limit]:
                del self._at_work[request]
                _break(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002  the base's signature
        """What a client does wrong is not worth a traceback."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError | ValueError):
            _log.warning("request_failed: %s: %s", type(error).__name__, error)

    def server_bind(self) -> None:
        """Without the base's look-up of the host's full name, for which a broken resolver takes half a minute."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


class _Server6(_Server):
    address_family = socket.AF_INET6


class _QuietHandler(WSGIRequestHandler):
    timeout = REQUEST_LIMIT  # a silent client must not hold a thread

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base class names it so
        """Scrapes and probes are not worth a log line each."""


def _break(request: socket.socket) -> None:
    """End the reading or writing of a thread."""
    with contextlib.suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)


def _in_child() -> None:
    for server in tuple(_servers):
        server.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def _probe(start_response: StartResponse, *, healthy: bool, checks: dict[str, str]) -> Iterable[bytes]:
    status = "200 OK" if healthy else "503 Service Unavailable"
    return _reply(start_response, status, {"status": "ok" if healthy else "failing", "checks": checks})


def _reply(
    start_response: StartResponse, status: str, body: dict[str, Any], headers: Iterable[tuple[str, str]] = ()
) -> Iterable[bytes]:
    payload = json.dumps(body).encode() + b"\n"
    start_response(
        status,
        [("Content-Type", "application/json"), ("Content-Length", str(len(payload))), *headers],
    )
    return [payload]
