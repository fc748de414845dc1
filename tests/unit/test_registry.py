import asyncio
import functools
import importlib
import sys
import threading
import types
from copy import copy

import pytest

from queue_system.errors import ConfigurationError, ImportRefusedError, UnresolvableFunctionError
from queue_system.imports import ImportPolicy
from queue_system.registry import (
    FunctionRef,
    ImportNeededError,
    Registry,
    Resolver,
    default_registry,
    processor,
    reference_of,
)
from queue_system.retry import QueueRetryConfig


def module_level(entity):
    return entity


def another(entity):
    return entity


async def module_level_async(entity):
    return entity


a_lambda = lambda entity: entity  # noqa: E731


def passing_on(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


@passing_on
def decorated(entity):
    return entity


@functools.lru_cache
def cached(entity):
    return entity


class Tasks:
    def method(self, entity):
        return entity

    @staticmethod
    def static(entity):
        return entity

    @classmethod
    def of_class(cls, entity):
        return entity


class Callable:
    def __call__(self, entity):
        return entity


class AsyncCallable:
    async def __call__(self, entity, context):
        return entity, context


@pytest.fixture
def registry():
    return Registry()


@pytest.fixture
def process_registry(monkeypatch):
    """The default registry, with what is registered in it taken back afterwards."""
    for index in Registry.__slots__:
        if index != "_lock":
            monkeypatch.setattr(default_registry, index, copy(getattr(default_registry, index)))
    return default_registry


def make_function(module, qualname="run", returns=1):
    def run(entity):
        return returns

    run.__module__, run.__qualname__ = module, qualname
    return run


@pytest.fixture
def main(tmp_path, monkeypatch):
    """The main program is the script `program.py`, in a directory on sys.path."""
    monkeypatch.syspath_prepend(tmp_path)
    module = types.ModuleType("__main__")
    module.__file__ = str(tmp_path / "program.py")
    monkeypatch.setitem(sys.modules, "__main__", module)
    return module


# reference_of


@pytest.mark.parametrize("function", [module_level, module_level_async, decorated, cached])
def test_a_function_has_its_own_name(function, registry):
    assert reference_of(function, registry) == FunctionRef(function.__name__, __name__)


@pytest.mark.parametrize(
    ("text", "name", "module"),
    [
        ("tasks:run", "run", "tasks"),
        ("app.tasks:run", "run", "app.tasks"),
        ("app.tasks:Tasks.run", "Tasks.run", "app.tasks"),
        ("tasks.run", "run", "tasks"),
        ("app.tasks.run", "run", "app.tasks"),
        ("run", "run", None),
        ("__main__:run", "run", "__main__"),
    ],
)
def test_strings_are_taken_apart(text, name, module):
    assert reference_of(text) == FunctionRef(name, module)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        ".",
        "tasks:",
        ":run",
        ".run",
        "tasks.",
        "a..b",
        "a:b:c",
        "a b",
        "tasks:run()",
        "tasks/x:run",
        "1:2",
        "a\n",
        "a:b\x00",
    ],
)
def test_strings_that_name_no_function(text):
    with pytest.raises(UnresolvableFunctionError, match="names no function") as caught:
        reference_of(text)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (a_lambda, "lambda"),
        (make_function("tasks", "outer.<locals>.run"), "inside of a function"),
        (Tasks().method, "bound to an object"),
        (Tasks.of_class, "bound to an object"),
        (Tasks.static, "inside of a class"),
        (Tasks.method, "inside of a class"),
        (Callable(), "not a Python function"),
        (Callable, "not a Python function"),
        (functools.partial(module_level, "secret"), "functools.partial"),
        (len, "not a Python function"),
        (42, "not a Python function"),
        (None, "not a Python function"),
        (make_function(None), "no name and module"),
    ],
)
def test_what_no_worker_could_find(function, reason, registry):
    with pytest.raises(UnresolvableFunctionError, match=reason) as caught:
        reference_of(function, registry)
    assert "define it with def at module level, or register it" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "function",
    [
        a_lambda,
        Tasks().method,
        Tasks.of_class,
        Tasks.static,
        Callable(),
        functools.partial(module_level),
        len,
        module_level,
    ],
)
def test_what_is_registered_has_the_reference_it_was_registered_under(function, registry):
    registered = registry.register(function, name="named", module="tasks")
    assert reference_of(function, registry) == FunctionRef("named", "tasks") == registered.ref
    assert registry.by_function(function) is registered


def test_a_bound_method_is_known_by_what_it_binds(registry):
    first, second = Tasks(), Tasks()
    registry.register(first.method, name="first")
    assert reference_of(first.method, registry).name == "first"
    with pytest.raises(UnresolvableFunctionError):
        reference_of(second.method, registry)


def test_a_function_of_the_main_program_has_its_importable_name(main, registry):
    assert reference_of(make_function("__main__"), registry) == FunctionRef("run", "program")
    assert reference_of(make_function("__mp_main__"), registry) == FunctionRef("run", "program")


def test_a_function_of_python_minus_m_has_the_name_of_the_spec(main, registry):
    main.__spec__ = importlib.machinery.ModuleSpec("app.worker", None)
    assert reference_of(make_function("__main__"), registry) == FunctionRef("run", "app.worker")


def test_a_main_program_that_cannot_be_imported(main, registry):
    del main.__file__
    assert reference_of(make_function("__main__"), registry) == FunctionRef("run", "__main__")


def test_a_reference_as_text():
    assert str(FunctionRef("run", "app.tasks")) == "app.tasks:run"
    assert str(FunctionRef("run", None)) == "run"


# Registry


def test_register_keeps_everything(registry):
    retry = QueueRetryConfig(3)
    registered = registry.register(
        AsyncCallable(),
        name="run",
        module="tasks",
        queue="mail",
        priority="high",
        timeout=5,
        retry_config=retry,
        on_success=module_level,
        on_failure="app.tasks:failed",
    )
    assert registry.find("run", "tasks") is registered
    assert (registered.is_async, registered.takes_context) == (True, True)
    assert (registered.queue, registered.priority, registered.timeout) == ("mail", "high", 5.0)
    assert registered.retry_config is retry
    assert (registered.on_success, registered.on_failure) == (module_level, "app.tasks:failed")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"queue": "a b"}, "queue name"),
        ({"queue": ""}, "queue name"),
        ({"priority": "urgent"}, "priority"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": -1}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"timeout": float("inf")}, "timeout"),
        ({"timeout": True}, "timeout"),
        ({"timeout": "5"}, "timeout"),
        ({"retry_config": {"max_attempts": 3}}, "QueueRetryConfig"),
        ({"on_success": 5}, "on_success"),
        ({"on_failure": 5}, "on_failure"),
        ({"name": "no name"}, "name"),
        ({"name": ""}, "name"),
        ({"name": 5}, "name"),
        ({"module": "tasks:"}, "module"),
    ],
)
def test_register_checks_its_arguments(registry, arguments, text):
    with pytest.raises(ConfigurationError, match=text):
        registry.register(module_level, **arguments)
    assert registry.names() == ()


def test_register_checks_the_references_of_callbacks(registry):
    with pytest.raises(UnresolvableFunctionError):
        registry.register(module_level, on_success="not a reference")


@pytest.mark.parametrize(
    "function", [a_lambda, Callable(), functools.partial(print, "secret"), make_function("t", "f.<locals>.g")]
)
def test_what_has_no_name_needs_one(registry, function):
    with pytest.raises(ConfigurationError, match="name=") as caught:
        registry.register(function)
    assert "secret" not in str(caught.value)
    assert registry.register(function, name="named").ref.name == "named"


def test_only_a_callable_can_be_registered(registry):
    with pytest.raises(ConfigurationError, match="callable"):
        registry.register("tasks:run")


def test_the_module_is_that_of_the_function_or_of_the_class(registry):
    assert registry.register(functools.partial(module_level), name="a").ref == FunctionRef("a", __name__)
    assert registry.register(Callable(), name="b").ref == FunctionRef("b", __name__)
    assert registry.register(Tasks.static).ref == FunctionRef("Tasks.static", __name__)


def test_find_without_a_module_needs_a_unique_name(registry):
    one = registry.register(make_function("one"))
    assert registry.find("run") is registry.find("run", "one") is one
    registry.register(make_function("two"))
    assert registry.find("run") is None
    assert registry.find("run", "one") is one
    assert registry.find("run", "three") is None
    assert registry.find("other") is None


def test_a_reload_replaces_and_another_function_does_not(registry):
    old, new = make_function("tasks"), make_function("tasks", returns=2)
    registry.register(old, queue="mail")
    replaced = registry.register(new)
    assert registry.find("run", "tasks") is registry.find("run") is replaced
    assert (registry.by_function(old), registry.by_function(new)) == (None, replaced)
    with pytest.raises(ConfigurationError, match="taken by run"):
        registry.register(another, name="run", module="tasks")
    with pytest.raises(ConfigurationError, match="taken"):
        registry.register(Callable(), name="run", module="tasks")
    assert registry.find("run", "tasks") is replaced


def test_registering_the_same_object_again_gives_it_new_defaults(registry):
    for function in (module_level, Callable(), Tasks().method):
        registry.register(function, name="again", module=type(function).__name__, queue="one")
        latest = registry.register(function, name="again", module=type(function).__name__, queue="two")
        assert registry.find("again", type(function).__name__) is registry.by_function(function) is latest


def test_a_function_with_two_names_keeps_its_first_reference(registry):
    registry.register(module_level)
    registry.register(module_level, name="alias")
    assert reference_of(module_level, registry).name == "module_level"
    assert registry.find("alias", __name__).function is module_level


def test_lambdas_of_one_module_are_told_apart(registry):
    registry.register(lambda entity: 1, name="run")
    with pytest.raises(ConfigurationError, match="taken"):
        registry.register(lambda entity: 2, name="run")


def test_methods_of_two_objects_are_told_apart(registry):
    first, second = Tasks(), Tasks()
    registry.register(first.method)
    with pytest.raises(ConfigurationError, match="taken"):
        registry.register(second.method)


def test_names(registry):
    registry.register(module_level)
    registry.register(len)
    assert registry.names() == (FunctionRef("len", "builtins"), FunctionRef("module_level", __name__))


@pytest.mark.parametrize("module", ["__main__", "__mp_main__", "program"])
def test_the_main_program_is_found_under_both_names(main, registry, module):
    registered = registry.register(make_function(module))
    assert registered.ref == FunctionRef("run", "program")
    assert registry.find("run", "program") is registry.find("run", "__main__") is registry.find("run") is registered
    assert registry.names() == (FunctionRef("run", "program"),)


def test_a_main_program_that_is_also_imported_is_one_source(main, registry):
    registry.register(make_function("__main__"))
    imported = registry.register(make_function("program"))
    assert registry.find("run", "__main__") is imported


def test_another_module_is_no_main_program(main, registry):
    registry.register(make_function("tasks"))
    assert registry.find("run", "__main__") is None


def test_many_threads(registry):
    functions = [make_function(f"module{index % 8}", f"run{index}") for index in range(400)]
    failures = []
    start = threading.Barrier(9)

    def register(part):
        start.wait()
        for function in functions[part::8]:
            registry.register(function, queue="one")
            registry.register(function, queue="two")

    def read():
        start.wait()
        while len(registry._by_ref) < len(functions):
            names = registry.names()
            failures.extend(ref for ref in names if registry.find(*ref) is None or registry.find(ref.name) is None)

    threads = [threading.Thread(target=register, args=(part,)) for part in range(8)]
    threads.append(threading.Thread(target=read))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not failures
    assert len(registry.names()) == len(functions)
    assert all(registry.by_function(function).queue == "two" for function in functions)


# The decorator


def test_the_bare_decorator_registers_in_the_process(process_registry):
    function = make_function("decorated_module")
    assert processor(function) is function
    assert process_registry.find("run", "decorated_module").function is function
    assert reference_of(function) == FunctionRef("run", "decorated_module")


def test_the_decorator_with_arguments(registry):
    @processor(registry=registry, name="run", queue="mail", priority="low", timeout=2.5, on_success="tasks:ok")
    async def run(entity):
        return entity + 1

    assert asyncio.run(run(1)) == 2
    registered = registry.by_function(run)
    assert registered.ref == FunctionRef("run", __name__)
    assert (registered.queue, registered.priority, registered.timeout) == ("mail", "low", 2.5)
    assert (registered.is_async, registered.on_success) == (True, "tasks:ok")


def test_the_decorator_checks_its_arguments(registry):
    with pytest.raises(ConfigurationError, match="priority"):
        processor(registry=registry, name="run", priority="urgent")(module_level)
    with pytest.raises(TypeError):
        processor(registry=registry, no_such_argument=1)(module_level)


# Resolver


class FakePolicy:
    def __init__(self, functions=(), error=None):
        self.functions, self.error, self.calls = dict(functions), error, []

    def load(self, module, name):
        self.calls.append((module, name))
        if self.error is not None:
            raise self.error
        return self.functions.get((module, name))


def test_registered_goes_before_imported(registry):
    policy = FakePolicy()
    registered = registry.register(module_level, name="system", module="os")
    assert Resolver(registry, policy).resolve("system", "os") is registered
    assert Resolver(registry, policy).resolve("system") is registered
    assert Resolver(registry, policy).registered("system", "os") is registered
    assert policy.calls == []


def test_what_is_imported_is_remembered(registry):
    policy = FakePolicy({("tasks", "run"): module_level_async})
    resolver = Resolver(registry, policy)
    assert resolver.registered("run", "tasks") is None
    found = resolver.resolve("run", "tasks")
    assert (found.function, found.ref, found.is_async) == (module_level_async, FunctionRef("run", "tasks"), True)
    assert resolver.resolve("run", "tasks") is found
    assert policy.calls == [("tasks", "run")]
    registered = registry.register(make_function("tasks"))
    assert resolver.resolve("run", "tasks") is registered


def test_what_is_missing_is_asked_for_again(registry):
    policy = FakePolicy()
    resolver = Resolver(registry, policy)
    assert resolver.resolve("run", "tasks") is None
    policy.functions["tasks", "run"] = module_level
    assert resolver.resolve("run", "tasks").function is module_level


def test_the_import_and_the_registry_agree_when_another_decorator_is_outside(registry):
    registered = []

    class Policy:
        def load(self, module, name):
            inner = make_function(module, name)
            registered.append(registry.register(inner))
            return passing_on(inner)

    assert Resolver(registry, Policy()).resolve("run", "tasks") is registered[0] is registry.find("run", "tasks")


def test_without_a_module_nothing_is_imported(registry):
    policy = FakePolicy()
    assert Resolver(registry, policy).resolve("run") is None
    assert policy.calls == []


def test_a_refusal_is_raised_each_time(registry):
    resolver = Resolver(registry, FakePolicy(error=ImportRefusedError("no")))
    for _ in range(2):
        with pytest.raises(ImportRefusedError):
            resolver.resolve("system", "os")


def test_what_the_import_registers_has_its_defaults(tmp_path, monkeypatch, process_registry):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "registering_tasks.py").write_text(
        "from queue_system.registry import processor\n"
        "@processor(queue='mail')\ndef run(entity): pass\n"
        "@processor(name='named', queue='slow')\ndef other(entity): pass\n"
    )
    importlib.invalidate_caches()
    try:
        resolver = Resolver(process_registry, ImportPolicy(also=["registering_tasks"]))
        for name in ("other", "run"):
            with pytest.raises(ImportNeededError):
                resolver.resolve(name, "registering_tasks", imports=False)
        assert "registering_tasks" not in sys.modules
        assert resolver.resolve("other", "registering_tasks").queue == "slow"
        assert resolver.resolve("run", "registering_tasks").queue == "mail"
        assert resolver.resolve("run", "registering_tasks", imports=False).queue == "mail"
    finally:
        sys.modules.pop("registering_tasks", None)


@pytest.mark.parametrize(
    ("function", "timeout", "told"), [(module_level, 5, 1), (module_level, None, 0), (module_level_async, 5, 0)]
)
def test_the_timeout_of_a_sync_function_is_told(registry, caplog, function, timeout, told):
    registry.register(function, timeout=timeout)
    assert caplog.text.count("timeout_of_sync_processor") == told
    assert ("a thread cannot be stopped" in caplog.text) is bool(told)
