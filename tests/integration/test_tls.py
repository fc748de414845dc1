"""``rediss://``: the server's certificate is verified, by producers and workers alike."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from scaffold import add, named

from queue_system import AsyncQueueManager, BrokerUnavailableError, QueueManager, QueueWorker
from queue_system.embedded import EmbeddedServer
from support import missing, running, until_metrics

DAYS = "2"


def openssl(*args: str, cwd: Path) -> None:
    done = subprocess.run(["openssl", *args], cwd=cwd, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr


def authority(directory: Path, name: str) -> Path:
    """A certificate authority of one's own; its certificate."""
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", DAYS, "-subj", f"/CN={name}",
            "-keyout", f"{name}.key", "-out", f"{name}.crt", cwd=directory)  # fmt: skip
    return directory / f"{name}.crt"


def certificate(directory: Path, name: str, address: str) -> tuple[Path, Path]:
    """A certificate of the authority `ours` for a server at `address`, and its key."""
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}",
            "-keyout", f"{name}.key", "-out", f"{name}.csr", cwd=directory)  # fmt: skip
    (directory / f"{name}.ext").write_text(f"subjectAltName=IP:{address}\n")
    openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ours.crt", "-CAkey", "ours.key", "-CAcreateserial",
            "-days", DAYS, "-extfile", f"{name}.ext", "-out", f"{name}.crt", cwd=directory)  # fmt: skip
    return directory / f"{name}.crt", directory / f"{name}.key"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    if shutil.which("openssl") is None:
        missing("openssl")
    directory = tmp_path_factory.mktemp("tls")
    for name in ("ours", "theirs"):
        authority(directory, name)
    return directory


def tls_server(directory: Path, name: str, address: str) -> Iterator[int]:
    """The port of a server that shows a certificate for that address; it listens on 127.0.0.1."""
    cert, key = certificate(directory, name, address)
    port = free_port()
    options = ("--tls-port", str(port), "--tls-cert-file", str(cert), "--tls-key-file", str(key),
               "--tls-ca-cert-file", str(directory / "ours.crt"), "--tls-auth-clients", "no")  # fmt: skip
    if not speaks_tls():
        missing("a redis-server with TLS")
    with EmbeddedServer(extra=options):
        yield port


def speaks_tls() -> bool:
    """Whether the server that is found was built with TLS: one in a wheel may not know the options."""
    with EmbeddedServer() as server, redis.Redis.from_url(server.url) as admin:
        return "tls-port" in admin.config_get("tls-port")


@pytest.fixture(scope="module")
def port(directory) -> Iterator[int]:
    yield from tls_server(directory, "server", "127.0.0.1")


@pytest.fixture(scope="module")
def strangers_port(directory) -> Iterator[int]:
    yield from tls_server(directory, "stranger", "127.0.0.2")


def url(port: int, directory: Path | None, authority: str = "ours") -> str:
    trusted = "" if directory is None else f"?ssl_ca_certs={directory / authority}.crt"
    return f"rediss://127.0.0.1:{port}/0{trusted}"


async def test_everything_goes_through_tls(make_config, port, directory):
    """The lease thread, the waiting connection and the producers have connections of their own: all are encrypted."""
    config = make_config(redis_url=url(port, directory))
    plain = make_config(redis_url=f"redis://127.0.0.1:{port}/0", connection_timeout=1.0, max_connection_retries=1)

    async def work(entity):
        return None

    add(config, work)
    manager = AsyncQueueManager(config)
    async with running(config, lease=1.0):
        QueueManager(config).enqueue({}, named(work))
        await manager.enqueue({}, named(work))
        await until_metrics(config, processed=2)
    await manager.close()
    with pytest.raises(BrokerUnavailableError):  # the port speaks nothing else
        QueueManager(plain).enqueue({}, named(work))


@pytest.mark.parametrize("trusted", ["theirs", "system"])
async def test_a_certificate_of_an_unknown_authority_is_refused(make_config, port, directory, trusted):
    address = url(port, None if trusted == "system" else directory, "theirs")
    await refused(make_config(redis_url=address, max_connection_retries=1))


async def test_a_certificate_of_another_host_is_refused(make_config, strangers_port, directory):
    await refused(make_config(redis_url=url(strangers_port, directory), max_connection_retries=1))


async def refused(config) -> None:
    manager, worker = AsyncQueueManager(config), QueueWorker(config)
    with pytest.raises(BrokerUnavailableError) as caught:
        QueueManager(config).enqueue({}, "app:work")
    errors = [caught.value]
    for call in (manager.enqueue({}, "app:work"), worker.start()):
        with pytest.raises(BrokerUnavailableError) as caught:
            await call
        errors.append(caught.value)
    await manager.close()
    for error in errors:
        assert "certificate" in str(error).lower(), error
        assert "name the authority's with ?ssl_ca_certs=FILE" in str(error), error
        assert error.kind == "connection"


async def test_a_client_of_ones_own_is_verified_just_the_same(make_config, port, directory):
    client = redis.Redis(host="127.0.0.1", port=port, ssl=True, ssl_ca_certs=str(directory / "theirs.crt"))
    await refused(make_config(redis_client=client, max_connection_retries=1))
    client = redis.Redis(host="127.0.0.1", port=port, ssl=True, ssl_ca_certs=str(directory / "ours.crt"))
    config = make_config(redis_client=client)
    assert QueueManager(config).get_queue_status()["total_items"] == 0
