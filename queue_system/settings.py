"""The settings of the command line: flags, then ``QUEUE_SYSTEM_*`` variables, then defaults.

The environment is read when `Settings.load` is called, never at import.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal, Self

from pydantic import ByteSize, Field, ValidationError, ValidatorFunctionWrapHandler, field_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from queue_system.broker.clients import check_url
from queue_system.broker.commands import DEFAULT_MAX_FAILURE_BYTES, DEFAULT_MAX_FAILURES
from queue_system.checks import MAX_SECONDS
from queue_system.config import DEFAULT_REDIS_URL, QueueConfig
from queue_system.errors import ConfigurationError
from queue_system.imports import ImportPolicy, is_identifier_path
from queue_system.keys import Keys, check_queue_name
from queue_system.runtime.pool import ABANDON_AFTER
from queue_system.signing import Signer
from queue_system.worker import DEFAULT_GRACE, DEFAULT_LEASE

PREFIX: Final = "QUEUE_SYSTEM_"
NO_MODULES: Final = "none"
"""The value of ``QUEUE_SYSTEM_IMPORTABLE_MODULES`` that turns importing by name off."""

TRACE_ID: Final = "{trace_id}"
"""What stands in `Settings.trace_url` for a trace's id."""

_FLAGS: Final = {"queue_prefix": "--prefix", "queues": "--queue"}
_SECRET: Final = frozenset({"redis_url", "otlp_endpoint", "signing_keys"})

_Count = Annotated[int, Field(gt=0)]
_Seconds = Annotated[float, Field(gt=0, le=MAX_SECONDS, allow_inf_nan=False)]


class Settings(BaseSettings):
    """What a command works with. Times in seconds.

    Each field is read from the variable of its name, e.g. ``QUEUE_SYSTEM_MAX_WORKERS`` for `max_workers`. An empty
    variable counts as not set. Lists are separated by commas: ``QUEUE_SYSTEM_QUEUES=mail,reports``.

    Attributes:
        redis_url: as for `QueueConfig`; ``redis://localhost:6379/0`` by default.
        queue_prefix: in front of every key, ``queue:`` by default.
        connection_timeout: for connecting and for each command, 5 by default.
        backup_ttl: for which failures and system errors are kept, 7 days by default.
        max_failures: so many failures, and so many system errors, are kept, 100,000 by default; the oldest go first.
        max_failure_bytes: limit of what is kept of both together, also as ``100MiB``; 512 MiB by default.
        durability: ``primary`` (default) or ``wait``, as for `QueueConfig`.
        durability_replicas: as for `QueueConfig`, 1 by default.
        durability_timeout: as for `QueueConfig`; None for its default.
        signing_keys: as for `QueueConfig`; None for none. Give them in the environment or with an `.env` of the
            process's supervisor, not on a command line, where others see them.
        require_signature: as for `QueueConfig`, true by default.
        max_workers: async operations at once, 5 by default.
        work_timeout: for an attempt of an async processor without a timeout of its own, 30 by default.
        thread_pool_size: sync operations at once, 20 by default.
        lease: after which the operations of a dead worker are taken over, 10 by default.
        grace: for which a worker that stops lets its operations finish, 30 by default.
        exit_timeout: for ``atexit`` handlers and threads to end once all is drained, 3 by default. No longer than the
            grace lasts, but 1 at least.
        abandon_after: after which a thread that still runs its operation counts as abandoned, 600 by default.
        max_abandoned: abandoned threads at which a worker drains and ends with 75; None for all of its threads, 0 for
            never.
        max_operations: after which a worker drains and ends; None for no limit.
        max_memory: bytes of its process at which a worker drains and ends, also as ``512MiB`` or ``2GB``; None for no
            limit.
        queues: names of the only queues to serve; None for all.
        importable_modules: prefixes of modules that may be imported by name; None for those of the program that
            runs, ``none`` for none. The modules given to a worker on its command line are allowed in any case.
        log_format: ``console`` for people (the default), ``json`` for machines.
        log_level: the least level that is logged; ``info`` by default.
        metrics_port: of a worker's ``/metrics``, ``/livez`` and ``/readyz``; 0 for a free one, None (the default) for
            no such server.
        metrics_host: the address that it listens on, 127.0.0.1 by default.
        otlp_endpoint: where spans are sent; without it the ``OTEL_EXPORTER_OTLP_*`` variables decide, and without
            them none are sent.
        otlp_protocol: ``http/protobuf`` or ``grpc``; None for what ``OTEL_EXPORTER_OTLP_PROTOCOL`` says, or
            ``http/protobuf``.
        trace_sample_ratio: share of the traces that are kept, 0 to 1; None for what ``OTEL_TRACES_SAMPLER`` says, or
            all. Retries are kept in any case.
        service_name: of the spans; None for ``OTEL_SERVICE_NAME``, or ``queue-system``.
        trace_url: where a trace can be looked at, with ``{trace_id}`` in it, e.g.
            ``http://localhost:16686/trace/{trace_id}`` for Jaeger; None for no links.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, extra="ignore", frozen=True)

    redis_url: str = Field(default=DEFAULT_REDIS_URL, repr=False)
    queue_prefix: str = "queue:"
    connection_timeout: _Seconds = 5.0
    backup_ttl: _Seconds = 7 * 86400.0
    max_failures: _Count = DEFAULT_MAX_FAILURES
    max_failure_bytes: Annotated[ByteSize, Field(gt=0)] = ByteSize(DEFAULT_MAX_FAILURE_BYTES)
    durability: Literal["primary", "wait"] = "primary"
    durability_replicas: _Count = 1
    durability_timeout: _Seconds | None = None
    signing_keys: tuple[str, ...] | None = Field(default=None, repr=False)
    require_signature: bool = True
    max_workers: _Count = 5
    work_timeout: _Seconds = 30.0
    thread_pool_size: _Count = 20
    lease: _Seconds = DEFAULT_LEASE
    grace: Annotated[float, Field(ge=0, le=MAX_SECONDS, allow_inf_nan=False)] = DEFAULT_GRACE
    exit_timeout: _Seconds = 3.0
    abandon_after: _Seconds = ABANDON_AFTER
    max_abandoned: Annotated[int, Field(ge=0)] | None = None
    max_operations: _Count | None = None
    max_memory: Annotated[ByteSize, Field(gt=0)] | None = None
    queues: tuple[str, ...] | None = None
    importable_modules: tuple[str, ...] | None = None
    log_format: Literal["console", "json"] = "console"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    metrics_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    metrics_host: str = "127.0.0.1"
    otlp_endpoint: str | None = None
    otlp_protocol: Literal["http/protobuf", "grpc"] | None = None
    trace_sample_ratio: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    service_name: str | None = None
    trace_url: str | None = None

    @classmethod
    def load(cls, **flags: Any) -> Self:
        """Read the settings now.

        Args:
            **flags: fields that were given on the command line; None and empty sequences count as not given.

        Raises:
            ConfigurationError: a value is out of its range; the text names the flag or the variable it came from.
        """
        given = {name: value for name, value in flags.items() if value is not None and value not in ([], ())}
        try:
            return cls(**given)
        except ValidationError as error:
            raise ConfigurationError(_explain(error, given)) from None

    def config(self, *, modules: Sequence[str] = (), **options: Any) -> QueueConfig:
        """A `QueueConfig` with these settings.

        Args:
            modules: may be imported by name besides what `importable_modules` allows.
            **options: further arguments of `QueueConfig`, which win.
        """
        policy = ImportPolicy(self.importable_modules, also=modules)
        settings: dict[str, Any] = {
            "redis_url": self.redis_url,
            "queue_prefix": self.queue_prefix,
            "connection_timeout": self.connection_timeout,
            "backup_ttl": self.backup_ttl,
            "max_failures": self.max_failures,
            "max_failure_bytes": int(self.max_failure_bytes),
            "durability": self.durability,
            "durability_replicas": self.durability_replicas,
            "durability_timeout": self.durability_timeout,
            "signing_keys": self.signing_keys or (),
            "require_signature": self.require_signature,
            "importable_modules": policy,
        }
        return QueueConfig(**settings | options)

    @classmethod
    def settings_customise_sources(  # noqa: D102  a hook of pydantic-settings
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, _PlainVariables(settings_cls)

    @field_validator("redis_url")
    @classmethod
    def _url(cls, value: str) -> str:
        return check_url(value)

    @field_validator("queue_prefix")
    @classmethod
    def _prefix(cls, value: str) -> str:
        return Keys(value).prefix

    @field_validator("max_memory", "max_failure_bytes", mode="wrap")
    @classmethod
    def _size(cls, value: Any, parse: ValidatorFunctionWrapHandler) -> Any:
        try:
            return parse(value)
        except ValidationError:
            raise ValueError("not a size such as 512MiB or 2GB") from None

    @field_validator("queues", "importable_modules", "signing_keys", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("signing_keys")
    @classmethod
    def _keys(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        Signer(value or ())
        return value

    @field_validator("queues")
    @classmethod
    def _names(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return value and tuple(check_queue_name(name) for name in value)

    @field_validator("importable_modules")
    @classmethod
    def _modules(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value == (NO_MODULES,):
            return ()
        for module in value or ():
            if not is_identifier_path(module):
                raise ValueError(f"{module!r} is not a module name such as 'app.tasks'")
        return value

    @field_validator("otlp_endpoint")
    @classmethod
    def _endpoint(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError("not an address such as http://localhost:4318")
        return value

    @field_validator("trace_url")
    @classmethod
    def _template(cls, value: str | None) -> str | None:
        if value is not None and (TRACE_ID not in value or not value.startswith(("http://", "https://"))):
            raise ValueError(f"not an address with {TRACE_ID} in it, such as http://localhost:16686/trace/{TRACE_ID}")
        return value

    @field_validator("durability", "log_format", "log_level", "otlp_protocol", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value


class _PlainVariables(EnvSettingsSource):
    """The environment, with lists as people write them into it, and not as JSON."""

    def decode_complex_value(self, field_name: str, field: Any, value: Any) -> Any:  # noqa: ARG002  the base's signature
        return value


def _explain(error: ValidationError, flags: Mapping[str, Any]) -> str:
    """One line for all that is wrong. The value is shown, unless it may hold a password."""
    problems = []
    for detail in error.errors(include_url=False, include_context=False):
        field = str(detail["loc"][0])
        name = _FLAGS.get(field, f"--{field.replace('_', '-')}") if field in flags else f"{PREFIX}{field.upper()}"
        reason = detail["msg"].removeprefix("Value error, ")
        value = "" if field in _SECRET else f"={detail['input']!r}"[:100]
        problems.append(f"{name}{value}: {reason}")
    return "; ".join(problems)
