import importlib
import os
import subprocess
import sys
import sysconfig
import textwrap
import threading
import types
import zipfile
from pathlib import Path

import pytest

from queue_system import import_scope, imports
from queue_system.errors import ConfigurationError, ImportRefusedError
from queue_system.imports import ImportPolicy, importable_main_name

REPOSITORY = Path(__file__).resolve().parents[2]
MARK = "import sys; sys.was_run = getattr(sys, 'was_run', []) + [__name__]\n"


class App:
    """An application whose main program is in a directory of its own, on sys.path, which is the working directory."""

    def __init__(self, root):
        self.root = root

    def write(self, path, source="", *, mark=True):
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text((MARK if mark else "") + textwrap.dedent(source))
        importlib.invalidate_caches()
        return file

    @property
    def was_run(self):
        return getattr(sys, "was_run", [])


@pytest.fixture
def app(tmp_path, monkeypatch):
    root = tmp_path / "project"
    root.mkdir()
    monkeypatch.chdir(root)
    monkeypatch.syspath_prepend(root)
    set_main(monkeypatch, root / "main.py")
    before = set(sys.modules)
    yield App(root)
    for name in set(sys.modules) - before:
        del sys.modules[name]
    vars(sys).pop("was_run", None)


def set_main(monkeypatch, file):
    """From now on the main program is that file; None for one without a file."""
    main = types.ModuleType("__main__")
    main.__file__ = None if file is None else str(file)
    monkeypatch.setitem(sys.modules, "__main__", main)


def refused(policy, module, name, match=None):
    """Assert that it is refused, and that this imported nothing."""
    before = set(sys.modules)
    with pytest.raises(ImportRefusedError, match=match) as caught:
        policy.load(module, name)
    assert set(sys.modules) == before
    assert not getattr(sys, "was_run", [])
    return caught.value


def test_a_function_of_the_application_is_imported_once(app):
    app.write("tasks.py", "def run(entity): return entity\nasync def arun(entity): return entity\n")
    policy = ImportPolicy()
    assert policy.load("tasks", "run")(7) == 7
    assert policy.load("tasks", "arun") is sys.modules["tasks"].arun
    assert app.was_run == ["tasks"]


def test_a_decorated_function_is_itself(app):
    app.write(
        "tasks.py",
        """
        import functools
        def twice(function):
            @functools.wraps(function)
            def inner(entity):
                return 2 * function(entity)
            return inner
        @twice
        def run(entity):
            return entity
        @functools.lru_cache
        def cached(entity):
            return entity
        """,
    )
    assert ImportPolicy().load("tasks", "run")(4) == 8
    assert ImportPolicy().load("tasks", "cached")(4) == 4


def test_a_definition_below_try_or_if_counts(app):
    app.write("tasks.py", "try:\n    import no_such\nexcept ImportError:\n    def run(entity): return 1\n")
    assert ImportPolicy().load("tasks", "run")(0) == 1


@pytest.mark.parametrize("with_init", [True, False])
def test_submodules_of_packages_and_of_nested_namespace_packages(app, with_init):
    if with_init:
        app.write("app/__init__.py")
        app.write("app/jobs/__init__.py")
    app.write("app/jobs/mail.py", "def send(entity): return 'sent'\n")
    assert ImportPolicy().load("app.jobs.mail", "send")(0) == "sent"
    assert ImportPolicy().load("app.jobs", "send") is None


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("os", "popen"),
        ("os.path", "join"),
        ("posix", "system"),
        ("subprocess", "run"),
        ("builtins", "eval"),
        ("builtins", "exec"),
        ("shutil", "rmtree"),
        ("pty", "spawn"),
        ("antigravity", "geohash"),
        ("redis", "from_url"),
        ("redis.client", "parse_info"),
        ("queue_system.imports", "importable_main_name"),
        ("queue_system.registry", "processor"),
    ],
)
@pytest.mark.parametrize("modules", [None, [], ["tasks"]])
def test_libraries_are_refused(app, monkeypatch, module, name, modules):
    monkeypatch.chdir(REPOSITORY)  # where this very package is found
    refused(ImportPolicy(modules), module, name)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("tasks", "os.system"),
        ("tasks", "__import__"),
        ("tasks", "_private"),
        ("tasks", "__builtins__"),
        ("tasks.__builtins__", "eval"),
        ("_tasks", "run"),
        ("app._hidden", "run"),
        ("__main__", "run"),
        ("__mp_main__", "run"),
        ("tasks", ""),
        ("", "run"),
        (".tasks", "run"),
        ("tasks.", "run"),
        ("..", "run"),
        ("tasks", "run()"),
        ("tasks/../os", "system"),
        ("/etc/tasks", "run"),
        ("tasks\n", "run"),
        ("tasks\x00", "run"),
        ("tasks", "run\x1b[2J"),
        ("tasks", "r" * 1000),
        ("a." * 100_000 + "a", "run"),
        ("\ud800", "run"),
    ],
)
@pytest.mark.parametrize("modules", [None, ["tasks", "app", "_tasks", "a"]])
def test_names_that_are_not_plain_are_refused(app, module, name, modules):
    app.write("tasks.py", "import os\ndef run(entity): pass\ndef _private(entity): pass\n")
    app.write("_tasks.py", "def run(entity): pass\n")
    error = refused(ImportPolicy(modules), module, name)
    assert str(error).isprintable()
    assert len(str(error)) < 1000


@pytest.mark.parametrize("modules", [None, ["tasks"]])
@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("from os import system", "system"),
        ("from os import system as run", "run"),
        ("import subprocess as run", "run"),
        ("import os\nrun = os.system", "run"),
        ("import os\nif True:\n    run: object = os.system", "run"),
        ("import os\n(run := os.system)", "run"),
        ("import os\nfor run in [os.system]: pass", "run"),
        ("class run: pass", "run"),
        ("def _f(entity): pass\nrun = _f", "run"),
        ("run = lambda entity: entity", "run"),
    ],
)
def test_what_a_module_does_not_define_is_refused_before_the_import(app, source, name, modules):
    app.write("tasks.py", source)
    refused(ImportPolicy(modules), "tasks", name, "does not define it")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("from os import popen", "popen"),
        ("from os import system", "system"),
        ("import os\nrun = os.popen", "run"),
        ("import os", "os"),
        ("import functools, os\nrun = functools.partial(os.system)", "run"),
        ("class run:\n    def __call__(self, entity): pass", "run"),
        ("class Tasks:\n    @staticmethod\n    def go(entity): pass\nrun = Tasks.go", "run"),
        ("def _f(entity): pass\nrun = _f", "run"),
        ("def make():\n    def run(entity): pass\n    return run\nrun = make()", "run"),
        ("def run(entity): pass\nrun.__wrapped__ = run", "run"),
    ],
)
def test_what_an_imported_module_does_not_define_is_refused(app, source, name):
    app.write("tasks.py", source, mark=False)
    importlib.import_module("tasks")
    refused(ImportPolicy(), "tasks", name)
    refused(ImportPolicy(["tasks"]), "tasks", name)


def test_a_definition_that_is_replaced_is_refused_after_the_import(app):
    app.write("tasks.py", "import os\ndef run(entity): pass\nrun = os.popen\n")
    with pytest.raises(ImportRefusedError, match="got it from os:popen"):
        ImportPolicy().load("tasks", "run")


@pytest.mark.parametrize(
    "source",
    [
        "def other(entity): pass",
        "from os import *",
        "def outer():\n    def run(entity): pass",
        "class A:\n    def run(self): pass",
    ],
)
def test_a_name_that_is_not_there_is_none_without_an_import(app, source):
    app.write("tasks.py", source)
    policy = ImportPolicy()
    assert policy.load("tasks", "run") is None
    assert app.was_run == []
    assert policy.load("no_such_module", "run") is None
    assert policy.load("tasks.os", "system") is None  # tasks is no package; os is not looked for on sys.path
    assert app.was_run == []


def test_a_loaded_module_is_not_asked_for_what_it_makes_up(app):
    app.write("tasks.py", "import os\ndef __getattr__(name): return os.system\n", mark=False)
    importlib.import_module("tasks")
    assert ImportPolicy().load("tasks", "run") is None
    assert ImportPolicy().load("tasks.os", "system") is None


def test_a_refused_or_missing_submodule_does_not_run_its_parents(app):
    app.write("app/__init__.py")
    app.write("app/tasks.py", "from os import system\ndef run(entity): pass\n")
    refused(ImportPolicy(), "app.tasks", "system")
    refused(ImportPolicy(["other"]), "app.tasks", "run", "not below importable_modules")
    assert ImportPolicy().load("app.tasks", "no_such") is None
    assert ImportPolicy().load("app.no_such", "run") is None
    assert app.was_run == []
    assert ImportPolicy().load("app.tasks", "run") is not None
    assert app.was_run == ["app", "app.tasks"]


def test_a_loaded_parent_leads_to_its_own_path(app):
    app.write("app/__init__.py", "__path__.append(__path__[0] + '_more')\n")
    app.write("app_more/tasks.py", "def run(entity): return 5\n")
    importlib.import_module("app")
    assert ImportPolicy().load("app.tasks", "run")(0) == 5


def test_a_parent_outside_of_the_application_is_refused(app, tmp_path, monkeypatch):
    library = tmp_path / "elsewhere"
    App(library).write("app/__init__.py")
    App(library).write("app/tasks.py", "def run(entity): pass\n")
    monkeypatch.syspath_prepend(library)
    refused(ImportPolicy(), "app.tasks", "run", "outside of the application")
    assert ImportPolicy(["app"]).load("app.tasks", "run") is not None


def test_prefixes_end_at_dots(app):
    app.write("application.py", "def run(entity): pass\n")
    app.write("app/tasks.py", "def run(entity): pass\n")
    app.write("app/tasks_old.py", "def run(entity): pass\n")
    refused(ImportPolicy(["app"]), "application", "run")
    refused(ImportPolicy(["app.tasks"]), "app.tasks_old", "run")
    refused(ImportPolicy(["app.tasks"]), "app", "run")
    assert ImportPolicy(["x", "app.tasks"]).load("app.tasks", "run") is not None
    assert ImportPolicy(["app"]).load("app.tasks_old", "run") is not None


def test_an_empty_list_turns_importing_off_even_for_what_is_loaded(app):
    app.write("tasks.py", "def run(entity): pass\n", mark=False)
    refused(ImportPolicy([]), "tasks", "run", "importing by name is off")
    importlib.import_module("tasks")
    refused(ImportPolicy([]), "tasks", "run", "importing by name is off")


@pytest.mark.parametrize("modules", ["tasks", [""], ["app."], ["app.*"], ["app:run"], [1], 5, {"app"}])
def test_bad_lists_of_modules(modules):
    with pytest.raises(ConfigurationError, match="importable_modules"):
        ImportPolicy(modules)


@pytest.mark.parametrize("vendor", ["venv/lib/python3/site-packages", "lib/dist-packages", "__pypackages__/lib"])
def test_installed_packages_below_the_working_directory_are_refused(app, monkeypatch, vendor):
    app.write(f"{vendor}/lib_tasks.py", "def run(entity): pass\n")
    monkeypatch.syspath_prepend(app.root / vendor)
    refused(ImportPolicy(), "lib_tasks", "run", "installed library")
    assert ImportPolicy(["lib_tasks"]).load("lib_tasks", "run") is not None
    with pytest.raises(ImportRefusedError, match="installed library"):  # now that it is loaded
        ImportPolicy().load("lib_tasks", "run")


def test_links_are_followed_out_of_the_application(app, tmp_path, monkeypatch):
    App(tmp_path / "site-packages").write("linked.py", "def run(entity): pass\n")
    (app.root / "linked.py").symlink_to(tmp_path / "site-packages/linked.py")
    refused(ImportPolicy(), "linked", "run", "installed library")
    (app.root / "site-packages").mkdir()
    app.write("innocent.py", "def run(entity): pass\n")
    (app.root / "site-packages/guilty.py").symlink_to(app.root / "innocent.py")
    monkeypatch.syspath_prepend(app.root / "site-packages")
    refused(ImportPolicy(), "guilty", "run", "installed library")


@pytest.mark.parametrize("modules", [None, ["calendar"]])
def test_a_module_that_shadows_the_standard_library(app, monkeypatch, modules):
    app.write("calendar.py", "def run(entity): pass\n")
    monkeypatch.delitem(sys.modules, "calendar", raising=False)
    policy = ImportPolicy(modules)
    if modules is None:
        refused(policy, "calendar", "run", "standard library")
    else:
        assert policy.load("calendar", "run") is not None


def test_below_a_name_of_the_standard_library(app, monkeypatch):
    app.write("xmlrpc/tasks.py", "def run(entity): pass\n")
    for name in [name for name in sys.modules if name.startswith("xmlrpc")]:
        monkeypatch.delitem(sys.modules, name)
    refused(ImportPolicy(), "xmlrpc.tasks", "run", "standard library")


def test_the_directories_of_the_standard_library_and_of_commands_are_refused(app, monkeypatch):
    stdlib = sysconfig.get_path("stdlib")
    monkeypatch.chdir(Path(stdlib).parent)
    refused(ImportPolicy(), "test.support", "requires")  # the name is in no list of the standard library's
    monkeypatch.setattr(import_scope, "_library_directories", lambda: frozenset({app.root / "bin"}))
    app.write("bin/jp.py", "def main(): pass\n")
    monkeypatch.syspath_prepend(app.root / "bin")
    monkeypatch.chdir(app.root)
    refused(ImportPolicy(), "jp", "main", "installed library")


def test_no_source_no_import(app, monkeypatch):
    (app.root / "native.so").write_bytes(b"")
    (app.root / f"native{sysconfig.get_config_var('EXT_SUFFIX')}").write_bytes(b"")
    importlib.invalidate_caches()
    refused(ImportPolicy(), "native", "run", "no Python source")
    refused(ImportPolicy(["native"]), "native", "run", "no Python source")


@pytest.mark.parametrize("source", [b"def run(:\n", b"def run(entity): pass\n\x00", b"# \xff\ndef run(entity): pass\n"])
def test_source_that_is_not_python(app, source):
    (app.root / "broken.py").write_bytes(source)
    importlib.invalidate_caches()
    error = refused(ImportPolicy(), "broken", "run", "cannot be read")
    assert error.__cause__ is not None


def test_archives_are_the_operators_choice(app, monkeypatch):
    with zipfile.ZipFile(app.root / "bundle.zip", "w") as archive:
        archive.writestr("zipped/__init__.py", "from os import system\ndef run(entity): return 3\n")
    monkeypatch.syspath_prepend(app.root / "bundle.zip")
    refused(ImportPolicy(), "zipped", "run", "archive")
    refused(ImportPolicy(["zipped"]), "zipped", "system")
    assert ImportPolicy(["zipped"]).load("zipped", "run")(0) == 3
    with pytest.raises(ImportRefusedError, match="archive"):
        ImportPolicy().load("zipped", "run")


@pytest.mark.parametrize(
    "failure",
    ["raise ValueError('no database')", "import sys; sys.exit(3)", "import no_such_thing", "raise KeyboardInterrupt",
     "class Panic(BaseException):\n    def __str__(self): raise SystemExit\nraise Panic"],
)  # fmt: skip
def test_a_module_that_fails_is_refused_with_the_cause(app, failure):
    app.write("tasks.py", f"{failure}\ndef run(entity): pass\n")
    with pytest.raises(ImportRefusedError, match="importing tasks failed") as caught:
        ImportPolicy().load("tasks", "run")
    assert caught.value.__cause__ is not None
    assert "tasks" not in sys.modules


def test_other_objects_in_sys_modules(app, monkeypatch):
    monkeypatch.setitem(sys.modules, "compat", os)
    refused(ImportPolicy(), "compat", "popen")
    refused(ImportPolicy(["compat"]), "compat", "popen", "got it from os:popen")
    monkeypatch.setitem(sys.modules, "made_up", types.ModuleType("made_up"))
    refused(ImportPolicy(), "made_up", "run", "no Python source file")
    assert ImportPolicy(["made_up"]).load("made_up", "run") is None
    compiled = types.ModuleType("compiled")
    compiled.__file__ = str(app.root / "compiled.pyc")
    exec("def run(entity): pass", vars(compiled))
    monkeypatch.setitem(sys.modules, "compiled", compiled)
    refused(ImportPolicy(), "compiled", "run", "no Python source file")
    monkeypatch.setitem(sys.modules, "odd", object())
    refused(ImportPolicy(["odd"]), "odd", "run", "not a module")
    app.write("blocked.py", "def run(entity): pass\n")
    monkeypatch.setitem(sys.modules, "blocked", None)
    refused(ImportPolicy(), "blocked", "run", "importing blocked failed")


def test_a_module_that_another_thread_is_importing_is_waited_for(app, monkeypatch):
    sys.importing, sys.go_on, asked = threading.Event(), threading.Event(), threading.Event()
    app.write("slow.py", "import sys\nsys.importing.set()\nsys.go_on.wait(10)\ndef run(entity): pass\n")
    original = imports._import
    monkeypatch.setattr(imports, "_import", lambda module: asked.set() or original(module))
    found = []
    first = threading.Thread(target=importlib.import_module, args=("slow",))
    second = threading.Thread(target=lambda: found.append(ImportPolicy().load("slow", "run")))
    try:
        first.start()
        assert sys.importing.wait(10)
        second.start()
        assert asked.wait(10)
    finally:
        sys.go_on.set()
        first.join(10)
        second.join(10)
        del sys.importing, sys.go_on
    assert found == [sys.modules["slow"].run]


@pytest.fixture
def main_program(app, monkeypatch):
    """`program.py`, run as a script: its functions are those of `__main__`."""
    file = app.write("program.py", "def run(entity): return 'main'\n")
    main = types.ModuleType("__main__")
    main.__file__ = str(file)
    exec(compile("def run(entity): return 'main'\nfrom os import popen", str(file), "exec"), vars(main))
    monkeypatch.setitem(sys.modules, "__main__", main)
    return main


def test_the_main_program_is_not_run_again(app, main_program):
    assert importable_main_name() == "program"
    assert ImportPolicy().load("program", "run") is main_program.run
    assert ImportPolicy(["program"]).load("program", "run") is main_program.run
    assert ImportPolicy().load("program", "no_such") is None
    refused(ImportPolicy(), "program", "popen")
    refused(ImportPolicy(["other"]), "program", "run")
    refused(ImportPolicy(), "__main__", "run", "registered")
    assert app.was_run == []


def test_the_directory_of_the_main_program_is_the_applications(app, main_program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path.parent)
    app.write("tasks.py", "def run(entity): pass\n")
    assert ImportPolicy().load("tasks", "run") is not None


def test_below_the_working_directory_is_what_the_program_has_loaded(app, monkeypatch, tmp_path):
    set_main(monkeypatch, tmp_path / "bin/service")
    app.write("tasks.py", "def run(entity): pass\n")
    app.write("app/__init__.py")
    app.write("app/tasks.py", "def run(entity): pass\n")
    policy = ImportPolicy()
    refused(policy, "tasks", "run", "outside of the application")
    refused(policy, "app.tasks", "run", "outside of the application")
    importlib.import_module("app")
    assert policy.load("app.tasks", "run") is not None
    importlib.import_module("tasks")
    assert policy.load("tasks", "run") is not None
    monkeypatch.chdir("/")
    with pytest.raises(ImportRefusedError, match="outside of the application"):
        ImportPolicy().load("tasks", "run")
    assert policy.load("tasks", "run") is not None  # a policy keeps the directories it was made with


@pytest.mark.parametrize("part", ["tests", "conftest", "setup", "scripts", "migrations", "build", "dist",
                                  "node_modules", "Tests", "test_it"])  # fmt: skip
def test_what_is_not_for_workers_is_refused_unless_it_is_listed(app, monkeypatch, part):
    app.write(f"{part}.py", "def run(entity): pass\n", mark=False)
    app.write(f"app/{part}/deep/tasks.py", "def run(entity): pass\n", mark=False)
    monkeypatch.delitem(sys.modules, part, raising=False)  # pytest's own conftest
    for module in (part, f"app.{part}.deep.tasks"):
        refused(ImportPolicy(), module, "run", f"a module {part!r} is not imported unless it is listed; register")
        assert ImportPolicy([module]).load(module, "run") is not None
        with pytest.raises(ImportRefusedError, match="not imported unless it is listed"):  # now that it is loaded
            ImportPolicy().load(module, "run")
    assert ImportPolicy(also=[part]).load(part, "run") is not None


def test_names_that_only_look_like_it(app):
    for name in ("testing", "setups", "rebuild"):
        app.write(f"{name}.py", "def run(entity): pass\n")
        assert ImportPolicy().load(name, "run") is not None


def test_directories_that_are_not_for_workers(app, monkeypatch):
    app.write("scripts/drop_database.py", "def run(entity): pass\n")
    monkeypatch.syspath_prepend(app.root / "scripts")
    refused(ImportPolicy(), "drop_database", "run", "a directory 'scripts' is not imported unless it is listed")
    set_main(monkeypatch, app.root / "scripts/worker.py")
    refused(ImportPolicy(), "drop_database", "run", "outside of the application")
    assert ImportPolicy(["drop_database"]).load("drop_database", "run") is not None


@pytest.mark.parametrize("mark", ["pyvenv.cfg", "conda-meta/history"])
def test_virtual_environments_are_refused_whatever_they_are_called(app, mark):
    app.write(f"env3/{mark}", mark=False)
    app.write("env3/bin/activate_this.py", "def run(entity): pass\n")
    refused(ImportPolicy(), "env3.bin.activate_this", "run", "installed library")


def test_the_packages_of_the_modules_that_a_worker_was_started_with(app, tmp_path, monkeypatch):
    set_main(monkeypatch, tmp_path / "bin/queue-system")
    monkeypatch.chdir("/")
    vendor = App(tmp_path / "site-packages")
    monkeypatch.syspath_prepend(vendor.root)
    vendor.write("shop/__init__.py")
    vendor.write("spaced/shop/tasks.py", "def run(entity): pass\n")
    vendor.write("spaced/other/tasks.py", "def run(entity): pass\n")
    for module in ("shop.tasks", "shop.callbacks", "shop.scripts.fix", "shopping"):
        vendor.write(f"{module.replace('.', '/')}.py", "def run(entity): pass\n")
    policy = ImportPolicy(also=["shop.tasks"])
    refused(policy, "shopping", "run", "installed library")
    refused(policy, "shop.scripts.fix", "run", "not imported unless it is listed")
    assert policy.load("shop.tasks", "run") is not None
    assert policy.load("shop.callbacks", "run") is not None
    with pytest.raises(ImportRefusedError):
        ImportPolicy([], also=["shop.tasks"]).load("shop.callbacks", "run")  # a list is all there is
    importlib.import_module("spaced.shop.tasks")
    spaced = ImportPolicy(also=["spaced.shop.tasks"])
    assert spaced.load("spaced.shop.tasks", "run") is not None
    with pytest.raises(ImportRefusedError, match="installed library"):  # a namespace is shared with others
        spaced.load("spaced.other.tasks", "run")


def test_a_module_without_a_package_brings_no_others(app, monkeypatch, tmp_path):
    set_main(monkeypatch, tmp_path / "bin/queue-system")
    app.write("tasks.py", "def run(entity): pass\n")
    app.write("other.py", "def run(entity): pass\n")
    policy = ImportPolicy(also=["tasks", "queue_system.demo.jobs"])
    assert policy.load("tasks", "run") is not None
    with pytest.raises(ImportRefusedError, match="outside of the application"):
        policy.load("other", "run")
    with pytest.raises(ImportRefusedError, match="installed library"):
        policy.load("queue_system.imports", "importable_main_name")


def test_a_working_directory_that_is_gone(app, monkeypatch):
    (app.root / "gone").mkdir()
    monkeypatch.chdir(app.root / "gone")
    (app.root / "gone").rmdir()
    assert refused(ImportPolicy(), "os", "system")


def _main(**attributes):
    main = types.ModuleType("__main__")
    vars(main).update(attributes)
    return main


@pytest.mark.parametrize(
    ("attributes", "name"),
    [
        ({"__spec__": importlib.machinery.ModuleSpec("app.worker", None), "__file__": "/app/worker.py"}, "app.worker"),
        ({"__spec__": importlib.machinery.ModuleSpec("app.__main__", None)}, "app.__main__"),
        ({"__file__": "on_path/program.py"}, "program"),
        ({"__file__": "on_path/console-script.py"}, "__main__"),
        ({"__file__": "on_path/console_script"}, "__main__"),
        ({"__file__": "elsewhere/program.py"}, "__main__"),
        ({"__file__": None}, "__main__"),
        ({}, "__main__"),
    ],
)
def test_importable_main_name(app, monkeypatch, attributes, name):
    monkeypatch.syspath_prepend("on_path")
    monkeypatch.setitem(sys.modules, "__main__", _main(**attributes))
    assert importable_main_name() == name


def test_repr():
    assert repr(ImportPolicy()) == "ImportPolicy(None)"
    assert repr(ImportPolicy(("app",))) == "ImportPolicy(['app'])"


AUDITED = """
import sys
from queue_system.errors import ImportRefusedError
from queue_system.imports import ImportPolicy
policies = [ImportPolicy(), ImportPolicy(["tasks", "app", "os", "subprocess"]), ImportPolicy([])]
for policy in policies:  # what these functions import lazily (codecs, for one) is imported here
    try:
        policy.load("warm_up", "run")
    except ImportRefusedError:
        pass
events = []
def hook(event, args):
    if event in {"import", "os.system", "subprocess.Popen"} or (event == "exec" and args[0].co_name == "<module>"):
        events.append((event, args))
sys.addaudithook(hook)
before = set(sys.modules)
names = ["os:system", "pty:spawn", "turtle:done", "builtins:eval", "tasks:system", "tasks:run", "tasks:os.system",
    "app.tasks:system", "app.tasks:run", "app.tasks.os:system", "distutils:run", "pip:main", "this:c", "site_task:run"]
for policy in policies:
    for module, name in (each.split(":") for each in names):
        try:
            assert policy.load(module, name) is None, (module, name)
        except ImportRefusedError as error:
            assert "failed" not in str(error), error
assert set(sys.modules) == before, set(sys.modules) - before
assert not events, events
assert policies[1].load("app.good", "run") is not None
assert len(events) >= 2, events  # the hook does see the code of both modules run
print("nothing was imported")
"""


def test_an_audit_hook_sees_no_import_and_no_code_run(app):
    app.write("warm_up.py", "run = 1\n")
    app.write("tasks.py", "from os import system\nrun = system\n")
    app.write("app/__init__.py")
    app.write("app/good.py", "def run(entity): pass\n")
    app.write("app/tasks.py", "from os import system\nrun = system\n")
    app.write("site-packages/site_task.py", "def run(entity): pass\n")
    app.write("audited.py", AUDITED, mark=False)
    path = os.pathsep.join([str(REPOSITORY), str(app.root / "site-packages")])
    done = subprocess.run(
        [sys.executable, "audited.py"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("nothing was imported\n", "")
