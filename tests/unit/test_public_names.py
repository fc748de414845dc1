"""The names of the package: imported when they are first asked for, and there for everyone who looks."""

import subprocess
import sys
from importlib import import_module

import pytest

import queue_system

# In a child for each name, so that every one is the first that is imported.
EACH_FIRST = """
import os, queue_system
for name in queue_system.__dir__():
    child = os.fork()
    if child == 0:
        getattr(queue_system, name)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, name
"""


def run(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_package_alone_imports_nothing_of_its_own():
    """So that the command handles signals within some milliseconds, and not after half a second."""
    modules = "import sys, queue_system; print(*sorted(m for m in sys.modules if m.startswith('queue_system.')))"
    assert run(modules).split() == ["queue_system.version"]
    assert run("import sys, queue_system; print({'redis', 'asyncio', 'msgspec'} & set(sys.modules))") == "set()\n"


def test_every_name_can_be_the_first():
    run(EACH_FIRST)


@pytest.mark.parametrize("name", sorted(queue_system.__all__))
def test_every_name_is_that_of_its_module(name):
    value = getattr(queue_system, name)
    if name != "__version__":
        assert value.__module__ == f"queue_system.{queue_system._HOMES[name]}"
    assert vars(queue_system)[name] is value, "asked for once"


def test_they_are_all_there_to_be_seen():
    assert {*queue_system._HOMES, "__version__"} == set(queue_system.__all__)
    assert set(queue_system.__all__) | queue_system._MODULES <= set(dir(queue_system))
    everything = {}
    exec("from queue_system import *", everything)
    assert set(queue_system.__all__) <= set(everything)


@pytest.mark.parametrize("name", sorted(queue_system._MODULES))
def test_modules_are_attributes_without_an_import_of_their_own(name):
    assert run(f"import queue_system; print(queue_system.{name}.__name__)") == f"queue_system.{name}\n"
    assert getattr(queue_system, name) is import_module(f"queue_system.{name}")


def test_what_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"^module 'queue_system' has no attribute 'QueueManger'$"):
        _ = queue_system.QueueManger
    with pytest.raises(ImportError, match="cannot import name 'QueueManger'"):
        exec("from queue_system import QueueManger", {})
