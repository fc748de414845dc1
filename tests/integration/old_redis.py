"""A server that says that it is Redis 6.0 and answers what a client asks before its first command."""

from __future__ import annotations

import contextlib
import socketserver
import threading
from collections.abc import Iterator

_ANSWERS = {
    b"HELLO": b"%1\r\n+proto\r\n:3\r\n",
    b"PING": b"+PONG\r\n",
    b"CLIENT": b"+OK\r\n",
    b"SELECT": b"+OK\r\n",
}
_INFO = b"# Server\r\nredis_version:6.0.16\r\n"


class _Connection(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        while header := self.rfile.readline():
            words = [self._word() for _ in range(int(header[1:]))]
            name = words[0].upper()
            answer = b"$%d\r\n%s\r\n" % (len(_INFO), _INFO) if name == b"INFO" else _ANSWERS.get(name)
            self.server.asked.append(name)
            self.wfile.write(answer or b"-ERR unknown command\r\n")

    def _word(self) -> bytes:
        word = self.rfile.read(int(self.rfile.readline()[1:]))
        self.rfile.readline()
        return word


class OldRedis(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.asked: list[bytes] = []

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.server_address[1]}/0"


@contextlib.contextmanager
def old_redis() -> Iterator[OldRedis]:
    with OldRedis() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(5)
