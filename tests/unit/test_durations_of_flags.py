"""Every number that a flag of the command, or a decorator, takes has bounds, and an error that names it."""

import math

import pytest
import typer

from queue_system.checks import MAX_SECONDS
from queue_system.cli import app, main
from queue_system.errors import ConfigurationError
from queue_system.utils import circuit_breaker, retry_with_backoff, with_timeout

BAD = {
    "SECONDS": ["-1", "nan", "inf", "1e300", str(MAX_SECONDS * 1.01), "soon"],
    "N": ["-1", "1.5", "many"],
    "SIZE": ["-1", "0", "1 elephant"],
    "PORT": ["-1", "65536", "http"],
    "RATIO": ["-0.1", "1.1", "nan", "half"],
}
ARGUMENTS = {"worker": ["json"], "enqueue": ["json:loads", "{}"]}


def options(command, path=()):
    """Each option that takes a number, of each command: from the command's own list."""
    for name, each in getattr(command, "commands", {}).items():
        yield from options(each, (*path, name))
    if not hasattr(command, "commands"):
        yield from [(path, option.opts[0], option.metavar) for option in command.params if option.metavar in BAD]


NUMBERS = list(options(typer.main.get_command(app)))


def test_the_flags_are_found():
    assert {"--grace", "--lease", "--exit-timeout", "--delay", "--max-memory"} <= {flag for _, flag, _ in NUMBERS}


@pytest.mark.parametrize(
    ("path", "flag", "value"),
    [pytest.param(path, flag, value) for path, flag, metavar in NUMBERS for value in BAD[metavar]],
)
def test_a_flag_out_of_bounds_is_bad_usage_and_says_which(path, flag, value, capsys, monkeypatch):
    monkeypatch.setenv("QUEUE_SYSTEM_REDIS_URL", "redis://127.0.0.1:1")
    assert main([*path, *ARGUMENTS.get(path[-1], []), f"{flag}={value}"]) == 2
    told = capsys.readouterr().err
    assert flag in told or flag.removeprefix("--").replace("-", "_") in told
    assert "Traceback" not in told


DECORATORS = {
    "seconds": lambda value: with_timeout(seconds=value),
    "recovery_timeout": lambda value: circuit_breaker(recovery_timeout=value),
    "base_delay": lambda value: retry_with_backoff(base_delay=value, max_delay=MAX_SECONDS),
    "max_delay": lambda value: retry_with_backoff(base_delay=0, max_delay=value),
}


@pytest.mark.parametrize("name", DECORATORS)
@pytest.mark.parametrize("value", [-1, math.nan, "5", True, math.inf, 10**400, MAX_SECONDS + 1])
def test_a_duration_of_a_decorator_out_of_bounds_is_refused_when_it_decorates(name, value):
    with pytest.raises(
        ConfigurationError, match=f"^{name} is .*: give (a number of|at most a hundred years in) seconds"
    ):
        DECORATORS[name](value)(len)


@pytest.mark.parametrize("name", DECORATORS)
@pytest.mark.parametrize("value", [0.001, 1, MAX_SECONDS])
def test_what_is_a_duration_of_a_decorator(name, value):
    DECORATORS[name](value)(len)


@pytest.mark.parametrize(
    ("name", "refused"), [("seconds", 1), ("recovery_timeout", 1), ("base_delay", 0), ("max_delay", 0)]
)
def test_only_waits_may_be_nothing(name, refused):
    if refused:
        with pytest.raises(ConfigurationError, match="above 0"):
            DECORATORS[name](0)(len)
    else:
        DECORATORS[name](0)(len)
