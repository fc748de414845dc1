import ssl

import fakeredis
import pytest
import redis
import redis.asyncio as aioredis

from queue_system import ConfigurationError, QueueConfig, UnsupportedServerError
from queue_system.broker.clients import (
    SettingsClients,
    UrlClients,
    check_prefix,
    check_server,
    check_url,
    hide_password,
)


@pytest.mark.parametrize(
    "url",
    [
        "redis://h",
        "redis://:p@h:1/2",
        "rediss://u:p@h",
        "unix:///tmp/a.sock?db=1",
        "unix:///tmp/a@b.sock",
        "embedded://",
        "embedded:///tmp/with space",
        "redis://h/",
        "redis://h:1//2/",
        "redis://h?socket_timeout=1.5&max_connections=3&client_name=me&protocol=3&username=u&password=p&db=1",
        "valkey://:p@h:1/2",
        "valkeys://u:p@h?ssl_ca_certs=/ca.pem",
    ],
)
def test_good_urls(url):
    assert check_url(url) == url


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("", "scheme ''"),
        (
            "localhost:6379",
            "scheme 'localhost': use one of redis://, rediss://, valkey://, valkeys://, unix://, embedded://",
        ),
        ("REDIS://secret@h", "must start with redis://, in small letters"),
        ("redis:secret", "must start with redis://, in small letters and with both slashes"),
        (" redis://:secret@h", "space or line break"),
        ("redis://:secret@h ", "space or line break"),
        ("redis://:secret@h\n", "space or line break"),
        ("redis://:sec\tret@h", "space or line break"),
        ("redis://h/secret", "number of a database"),
        ("redis://h/1/secret", "number of a database"),
        ("redis://h?foo=secret", "unknown option 'foo': known are those of redis-py, such as client_name"),
        ("redis://h?passwd=secret", "unknown option 'passwd': did you mean 'password'?"),
        ("redis://h?secret", "unknown option without a value"),
        ("redis://h?ssl_ca_certs=secret", "unknown option 'ssl_ca_certs': it is one of TLS, which needs rediss://"),
        ("redis://h?retry=secret", "unknown option 'retry'"),
        ("redis://h?lookup=secret", "unknown option 'lookup'"),
        ("redis://h?host=secret", "unknown option 'host'"),
        ("redis://h?socket_timeout=secret", "a value of 'socket_timeout' that cannot be read"),
        ("unix:///tmp/a.sock?db=secret", "a value of 'db' that cannot be read"),
        ("unix:///tmp/a.sock?foo=secret", "unknown option 'foo'"),
        ("embedded://u:secret@x", "embedded:///absolute/path"),
        ("embedded:///", "embedded:///absolute/path"),
        ("embedded:///a?secret", "embedded:///absolute/path"),
        ("embedded:///a#secret", "embedded:///absolute/path"),
        ("http://h", "scheme 'http'"),
        ("redis://h:port", "not a valid URL"),
        ("redis://h:99999", "not a valid URL"),
        ("redis://[::1", "not a valid URL"),
        ("redis://:8/secret@h", "%2F for '/'"),
        ("redis://:8#secret@h", "%23 for '#'"),
        ("redis://:8?secret@h", "%3F for '?'"),
        ("redis://user:secret/secret@h", "not a valid URL"),
        (None, "must be a string, not NoneType"),
        (b"redis://h", "must be a string, not bytes"),
    ],
)
def test_bad_urls_are_told_without_their_secrets(url, told):
    with pytest.raises(ConfigurationError) as caught:
        check_url(url)
    assert told in str(caught.value)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None  # its text has the URL


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://h:6379/0", "redis://h:6379/0"),
        ("redis://:secret@h:6379/0", "redis://***@h:6379/0"),
        ("redis://user:secret@h", "redis://user:***@h"),
        ("redis://user:se:cr:et@h", "redis://user:***@h"),
        ("redis://user:secret%40x@h", "redis://user:***@h"),
        ("redis://user:secret@x@h", "redis://user:***@h"),
        ("rediss://user:secret@[::1]:6379/1?ssl_cert_reqs=none", "rediss://user:***@[::1]:6379/1?ssl_cert_reqs=none"),
        ("redis://h/0?password=secret&db=1", "redis://h/0?password=***&db=1"),
        ("redis://h/0?ssl_password=secret", "redis://h/0?ssl_password=***"),
        ("redis://h/0?PASSWORD=secret", "redis://h/0?PASSWORD=***"),
        ("unix://user:secret@/tmp/a.sock?db=1", "unix://user:***@/tmp/a.sock?db=1"),
        ("embedded://", "embedded://"),
        ("embedded:///tmp/data", "embedded:///tmp/data"),
        ("redis://secret@h:6379/0", "redis://***@h:6379/0"),
        ("redis://user:@h", "redis://user:***@h"),
        ("redis://h?passwd=secret&client_name=me", "redis://h?passwd=***&client_name=me"),
        ("redis://h?token=secret", "redis://h?token=***"),
        ("redis://h?secret", "redis://h?***"),
        ("embedded://u:secret@x", "embedded://u:***@x"),
        ("valkey://:8/secret@h", "valkey://***"),
        ("valkeys://user:secret@h", "valkeys://user:***@h"),
        ("redis://user:secret/x@h", "***"),
        ("redis://:8/secret@h", "redis://***"),
        ("redis://:8#secret@h", "redis://***"),
        ("redis://:8?secret@h", "redis://***"),
        ("redis://:8?x=secret@h", "redis://:8?x=***"),
        ("redis://:x@8/secret@h", "redis://***"),
    ],
)
def test_a_password_is_never_shown(url, shown):
    assert hide_password(url) == shown


def test_a_configuration_shows_its_address_without_the_password():
    config = QueueConfig(redis_url="redis://user:secret@h:1/2", telemetry=None)
    assert repr(config) == "QueueConfig(redis='redis://user:***@h:1/2', queue_prefix='queue:')"
    assert "secret" not in repr(vars(config))


def made_by(clients) -> list:
    """A connection of each side, not connected yet."""
    return [
        client.connection_pool.make_connection() for client in (clients.sync(timeout=1.5), clients.aio(timeout=1.5))
    ]


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:secret@h:1/2",
        "rediss://user:secret@h:1/2?ssl_cert_reqs=none",
        "unix://user:secret@/tmp/a.sock?db=2",
        "redis://user:secret@h:1/2?socket_timeout=99&decode_responses=true&retry_on_timeout=true&health_check_interval=9",
    ],
)
def test_clients_of_a_url_have_our_limits_and_no_retries_of_their_own(url):
    for connection in made_by(UrlClients(url)):
        assert (connection.username, connection.password, connection.db) == ("user", "secret", 2)
        assert (connection.socket_timeout, connection.socket_connect_timeout) == (1.5, 1.5)
        assert connection.retry._retries == 0
        assert connection.health_check_interval == 0
        assert connection.encoder.decode_responses is False


@pytest.mark.parametrize(
    ("client", "address", "async_class"),
    [
        (redis.Redis(host="h", port=1, db=2, password="secret"), "h:1/2", aioredis.Connection),
        (redis.Redis(host="h", ssl=True, username="u"), "h:6379/0", aioredis.SSLConnection),
        (redis.Redis(unix_socket_path="/tmp/a"), "/tmp/a/0", aioredis.UnixDomainSocketConnection),
        (redis.Redis.from_url("redis://:secret@h:1/2"), "h:1/2", aioredis.Connection),
    ],
)
def test_settings_are_taken_from_a_client_for_both_sides(client, address, async_class):
    clients = SettingsClients(client)
    assert clients.address == address
    own = client.connection_pool.connection_kwargs
    for connection in made_by(clients):
        for name in ("host", "port", "db", "username", "password", "path"):
            assert getattr(connection, name, None) == own.get(name, getattr(connection, name, None))
        assert (connection.socket_timeout, connection.socket_connect_timeout) == (1.5, 1.5)
        assert connection.retry._retries == 0
        assert connection.encoder.decode_responses is False
    assert isinstance(connection, async_class)


@pytest.mark.parametrize(("scheme", "like"), [("valkey", "redis"), ("valkeys", "rediss")])
def test_a_url_of_valkey_is_one_of_redis(scheme, like):
    clients = UrlClients(f"{scheme}://user:secret@h:1/2?client_name=me")
    assert clients.address == f"{scheme}://user:***@h:1/2?client_name=me"
    for connection, other in zip(made_by(clients), made_by(UrlClients(f"{like}://h")), strict=True):
        assert type(connection) is type(other)
        assert (connection.host, connection.port, connection.db, connection.client_name) == ("h", 1, 2, "me")
        assert (connection.username, connection.password) == ("user", "secret")


def test_an_option_that_the_asynchronous_client_lacks_is_told_where_it_is_made():
    clients = UrlClients("rediss://h?ssl_validate_ocsp=true")
    clients.sync(timeout=1)
    with pytest.raises(ConfigurationError, match="has no ssl_validate_ocsp"):
        clients.aio(timeout=1)


@pytest.mark.parametrize(
    ("client", "told"),
    [
        (aioredis.Redis(), r"must be a redis\.Redis, not a redis\.asyncio\.Redis"),
        (fakeredis.FakeRedis(), r"use queue_system\.testing"),
        (fakeredis.FakeAsyncRedis(), r"must be a redis\.Redis"),
    ],
)
def test_a_client_of_another_kind_is_refused(client, told):
    with pytest.raises(ConfigurationError, match=told):
        QueueConfig(redis_client=client, telemetry=None)


def test_a_client_of_its_own_is_made():
    client = redis.Redis(host="h")
    assert SettingsClients(client).sync(timeout=1).connection_pool is not client.connection_pool


def test_tls_settings_are_taken_over():
    client = redis.Redis(host="h", ssl=True, ssl_cert_reqs="none", ssl_check_hostname=False, ssl_ca_certs="/ca.pem")
    for connection in made_by(SettingsClients(client)):
        context = getattr(connection, "ssl_context", connection)
        assert (context.cert_reqs, context.ca_certs) == (ssl.CERT_NONE, "/ca.pem")


def test_a_security_setting_that_the_asynchronous_client_lacks_is_not_dropped_in_silence():
    client = redis.Redis(host="h", ssl=True, ssl_validate_ocsp=True)
    with pytest.raises(ConfigurationError, match="has no ssl_validate_ocsp"):
        SettingsClients(client).aio(timeout=1)


def test_a_client_that_is_none_is_refused():
    with pytest.raises(ConfigurationError, match=r"must be a redis\.Redis, not str"):
        SettingsClients("redis://h")


def test_a_connection_class_without_a_twin_is_refused_only_where_one_is_needed():
    class Special(redis.Connection):
        pass

    clients = SettingsClients(redis.Redis(connection_pool=redis.ConnectionPool(connection_class=Special, host="h")))
    assert clients.sync(timeout=1).connection_pool.connection_class is Special
    with pytest.raises(ConfigurationError, match="no asynchronous twin of Special"):
        clients.aio(timeout=1)


def test_a_client_and_a_url_are_one_too_many():
    with pytest.raises(ConfigurationError, match="not both"):
        QueueConfig(redis_client=redis.Redis(), redis_url="redis://h")


@pytest.mark.parametrize(
    "version", ["6.2", "6.2.14", "7.0.15", "7.4-rc1", "8.1.0", "10.0", "255.255.255", "", "unknown"]
)
def test_new_enough_servers(version):
    check_server(version, "here")


@pytest.mark.parametrize("version", ["6.0.20", "5.0.14", "2.8", "6.1.99"])
def test_servers_that_are_too_old(version):
    with pytest.raises(UnsupportedServerError, match=rf"Redis at here is version {version}: 6\.2 or newer"):
        check_server(version, "here")


@pytest.mark.parametrize("prefix", ["queue:", "{}queue:", "queue}{:", "a{:"])
def test_keys_that_would_be_spread_over_a_cluster_are_refused(prefix):
    check_prefix(prefix, "here", is_cluster=False)
    with pytest.raises(ConfigurationError, match=r"Redis at here is a cluster.*such as queue_prefix='\{"):
        check_prefix(prefix, "here", is_cluster=True)


@pytest.mark.parametrize("prefix", ["{queue}:", "shop:{mail}:", "{{a}"])
def test_a_prefix_with_a_hash_tag_is_good_for_a_cluster(prefix):
    check_prefix(prefix, "here", is_cluster=True)
