"""The side-car's endpoints: ``/metrics``, ``/livez``, ``/readyz``, in a thread of their own.

In a thread, so that a processor that blocks the event loop is seen instead of hiding the scrape. On 127.0.0.1 unless
told otherwise; everything answers GET and HEAD only and changes nothing.
"""

from __future__ import annotations

import json
import socket
import threading
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
    daemon_threads = True

    def server_bind(self) -> None:
        """Without the base's look-up of the host's full name, for which a broken resolver takes half a minute."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


class _Server6(_Server):
    address_family = socket.AF_INET6


class _QuietHandler(WSGIRequestHandler):
    timeout = 10  # seconds for a client to send its request: a silent one must not hold a thread

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base class names it so
        """Scrapes and probes are not worth a log line each."""


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
