"""Clients of the side-car that send nothing, too slowly, or nonsense: others are answered, and stderr stays empty."""

import os
import socket
import urllib.request
from contextlib import ExitStack

import pytest
from prometheus_client import CollectorRegistry

import telemetry.server as module
from queue_system.events import Health
from telemetry import SidecarServer


@pytest.fixture
def server():
    health = Health(alive=True, ready=True, alive_checks={}, ready_checks={})
    server = SidecarServer(lambda: health, port=0, registry=CollectorRegistry())
    server.start()
    yield server
    server.stop()


def connected(server):
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def probe(server):
    with urllib.request.urlopen(f"{server.url}/livez", timeout=10) as answer:
        return answer.status


def test_probes_are_answered_while_50_clients_say_nothing(server):
    with ExitStack() as silent:
        clients = [silent.enter_context(connected(server)) for _ in range(50)]
        assert [probe(server) for _ in range(3)] == [200] * 3
        assert clients[0].recv(1) == b"", "the oldest had to go"
        assert len(server._server._at_work) <= module.MAX_THREADS


def test_a_client_that_trickles_is_given_up(server, monkeypatch):
    monkeypatch.setattr(module, "REQUEST_LIMIT", 0.2)
    with connected(server) as client:
        client.sendall(b"GET /livez HTTP/1.1\r\nX-Slow: ")
        assert client.recv(1) == b""


@pytest.mark.parametrize(
    "nonsense", [b"\r\n\r\n", b"\xff\xfe\x00\r\n\r\n", b"GET / HTTP/1.1\r\nno colon\r\n\r\n", b"GET"]
)
def test_nonsense_leaves_no_traceback(server, capfd, nonsense):
    with connected(server) as client:
        client.sendall(nonsense)
        client.shutdown(socket.SHUT_WR)
        while client.recv(4096):
            pass
    assert probe(server) == 200
    assert capfd.readouterr().err == ""


def test_a_forked_child_does_not_keep_the_port(server):
    child_may_end, end = os.pipe()
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(tell, b"1" if server._server.socket.fileno() == -1 else b"0")
        os.read(child_may_end, 1)
        os._exit(0)
    try:
        assert os.read(told, 1) == b"1"
        assert probe(server) == 200
        port = server.port
        server.stop()
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind(("127.0.0.1", port))
            other.listen()
    finally:
        os.write(end, b"1")
        os.waitpid(child, 0)
