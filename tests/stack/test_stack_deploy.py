"""The compose file, the manifests and the image file: valid, and such that the real programs accept what is in them.

There is no container engine here: what is checked is all that can be without one (docs/deployment.md, "What was run").
"""

from __future__ import annotations

import contextlib
import copy
import http.server
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import psutil
import pytest
import yaml

from deploy.prometheusrule import TARGET, manifest
from queue_system import QueueConfig
from queue_system.settings import Settings
from stack import jaeger
from stack.programs import free_port
from support import missing, until
from telemetry.catalogue import CATALOGUE

ROOT = Path(__file__).parents[2]
SCHEMAS = Path(__file__).with_name("schemas")
MANIFESTS = sorted((ROOT / "deploy" / "kubernetes").glob("*.yaml"))
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]
RESOURCES = [resource for path in MANIFESTS for resource in yaml.safe_load_all(path.read_text())]
KUBERNETES = "1.31"
QUEUE_SYSTEM = Path(sys.executable).with_name("queue-system")


def run(*command: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60, check=False, **options)


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        missing(name)
    return str(found)


def schema(name: str) -> Any:
    return json.loads((SCHEMAS / f"{name}.json").read_text())


def check_compose(document: Any) -> None:
    jsonschema.validate(document, schema("compose-spec"))


def check_resource(resource: Any) -> None:
    if (SCHEMAS / f"{resource['kind']}.json").exists():
        jsonschema.validate(resource, schema(resource["kind"]))
    else:
        kubernetes_validate.validate(resource, KUBERNETES, strict=True)


def of_kind(kind: str) -> list[Any]:
    return [resource for resource in RESOURCES if resource["kind"] == kind]


def containers() -> list[tuple[Any, Any]]:
    """Each container with the pod that it is in."""
    pods = [deployment["spec"]["template"]["spec"] for deployment in of_kind("Deployment")]
    return [(pod, container) for pod in pods for container in pod["containers"]]


# The compose file.


def test_the_compose_file_is_valid() -> None:
    check_compose(COMPOSE)


@pytest.mark.parametrize("break_it", ["unknown key", "wrong type", "no services"])
def test_a_broken_compose_file_is_not(break_it: str) -> None:
    document = copy.deepcopy(COMPOSE)
    if break_it == "unknown key":
        document["services"]["redis"]["healtcheck"] = {}
    elif break_it == "wrong type":
        document["services"]["redis"]["healthcheck"]["retries"] = {"often": True}
    else:
        document["services"] = []
    with pytest.raises(jsonschema.ValidationError):
        check_compose(document)


def test_the_services_are_those_of_the_whole_system() -> None:
    assert set(SERVICES) == {"redis", "app", "worker", "prometheus", "alertmanager", "grafana", "jaeger"}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_pinned_healthy_and_local(name: str) -> None:
    service = SERVICES[name]
    assert re.fullmatch(r"[a-z/-]+:v?\d+\.\d+\.\d+(-alpine)?", service["image"])
    assert service["healthcheck"]["test"][0] == "CMD"
    assert [port for port in service.get("ports", []) if not port.startswith("127.0.0.1:")] == []
    assert set(service.get("depends_on", ())) <= set(SERVICES)
    assert not [variable for variable in service.get("environment", {}) if "PASSWORD" in variable]
    for volume in service.get("volumes", ()):
        source = volume.split(":")[0]
        assert (ROOT / source).exists() if source.startswith("./") else source in COMPOSE["volumes"], volume


def test_nobody_logs_in_to_grafana() -> None:
    environment = SERVICES["grafana"]["environment"]
    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert environment["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"


def test_grafana_finds_its_dashboards_and_data_sources() -> None:
    mounts = dict(volume.split(":")[:2] for volume in SERVICES["grafana"]["volumes"])
    provisioning = ROOT / "grafana" / "provisioning"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "queue-system.yml").read_text())["providers"]
    assert provider["options"]["path"] == mounts["./grafana/dashboards"]
    for source in yaml.safe_load((provisioning / "datasources" / "queue-system.yml").read_text())["datasources"]:
        service, port = re.fullmatch(r"http://(\w+):(\d+)", source["url"]).groups()
        assert f"127.0.0.1:{port}:{port}" in SERVICES[service]["ports"]


def test_prometheus_takes_its_files_as_they_are_mounted(tmp_path: Path) -> None:
    promtool = program("promtool")
    for volume in SERVICES["prometheus"]["volumes"]:
        source, target = volume.split(":")[:2]
        if source.startswith("./"):
            place = tmp_path / Path(target).relative_to("/etc/prometheus")
            (shutil.copytree if (ROOT / source).is_dir() else shutil.copy)(ROOT / source, place)
    checked = run(promtool, "check", "config", tmp_path / "prometheus.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert re.search(r"alerts\.yml\s+SUCCESS: \d+ rules found", checked.stdout)
    told = [group for path in (tmp_path / "targets").iterdir() for group in yaml.safe_load(path.read_text())]
    hosts = {target.split(":")[0] for group in told for target in group["targets"]}
    assert hosts == {"app", "alertmanager"}


def test_alertmanager_takes_its_file() -> None:
    source = next(volume for volume in SERVICES["alertmanager"]["volumes"] if volume.startswith("./")).split(":")[0]
    checked = run(program("amtool"), "check-config", ROOT / source)
    assert checked.returncode == 0, checked.stdout + checked.stderr


async def test_redis_takes_its_flags(tmp_path: Path) -> None:
    server, *flags = SERVICES["redis"]["command"]
    port = free_port()
    command = [program(server), *flags, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:  # noqa: ASYNC220  it is not waited for here
        try:
            await until(lambda: process.poll() is not None or run("redis-cli", "-p", port, "ping").stdout == "PONG\n")
            assert process.poll() is None
            assert run("redis-cli", "-p", port, "config", "get", "appendonly").stdout == "appendonly\nyes\n"
            with QueueConfig(redis_url=f"redis://127.0.0.1:{port}/0") as config:
                assert config.get_metrics()["enqueued"] == 0
        finally:
            process.terminate()
            process.wait(20)


@pytest.mark.parametrize("name", ["app", "worker"])
@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False), (None, False)])
def test_the_health_checks_in_python_tell(name: str, status: int | None, *, healthy: bool) -> None:
    (_, *command) = SERVICES[name]["healthcheck"]["test"]
    with answering(status) as port:
        command[-1] = re.sub(r"127\.0\.0\.1:\d+", f"127.0.0.1:{port}", command[-1])
        assert (run(sys.executable, *command[1:]).returncode == 0) == healthy


class answering:  # noqa: N801  a context manager, as a function would be
    """A server that answers everything so; with None none at all."""

    def __init__(self, status: int | None) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status or 500)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = None if status is None else http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self) -> int:
        if self.server is None:
            return free_port()
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return int(self.server.server_port)

    def __exit__(self, *_: object) -> None:
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()


# What is given to the programs, in the compose file and in the manifests.


def worker_arguments() -> list[list[str]]:
    given = [service.get("command", []) for service in SERVICES.values()] + [
        one.get("args", []) for _, one in containers()
    ]
    return [arguments for arguments in given if arguments[:1] == ["worker"]]


def test_each_worker_flag_exists_and_a_wrong_one_does_not() -> None:
    assert len(worker_arguments()) == 3
    for arguments in worker_arguments():
        asked = run(QUEUE_SYSTEM, *arguments, "--help")
        assert asked.returncode == 0, asked.stderr
    assert run(QUEUE_SYSTEM, *worker_arguments()[0], "--graze", "1", "--help").returncode == 2


def test_each_variable_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    given = [service.get("environment", {}) for service in SERVICES.values()]
    given += [{one["name"]: one.get("value", "redis://r") for one in container["env"]} for _, container in containers()]
    given.append(dict(re.findall(r"(QUEUE_SYSTEM_\w+)=(\S+)", containerfile())))
    ours = [{name: value for name, value in one.items() if name.startswith("QUEUE_SYSTEM_")} for one in given]
    assert sum(map(bool, ours)) == 6
    for variables in filter(None, ours):
        assert {name.removeprefix("QUEUE_SYSTEM_").lower() for name in variables} <= set(Settings.model_fields)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        Settings.load()


def test_the_time_to_stop_is_longer_than_the_grace() -> None:
    assert grace(SERVICES["worker"]["command"]) < int(SERVICES["worker"]["stop_grace_period"].removesuffix("s"))
    graces = [(grace(one["args"]), pod["terminationGracePeriodSeconds"]) for pod, one in containers() if "args" in one]
    assert len(graces) == 2
    assert all(drain + 5 <= limit for drain, limit in graces)


def grace(arguments: list[str]) -> float:
    return float(arguments[arguments.index("--grace") + 1])


# Kubernetes.


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda one: f"{one['kind']}-{one['metadata']['name']}")
def test_a_manifest_is_valid(resource: Any) -> None:
    check_resource(resource)


def _set(resource: Any, path: str, value: Any) -> Any:
    resource = place = copy.deepcopy(resource)
    *parents, last = path.split(".")
    for name in parents:
        place = place[int(name)] if name.isdigit() else place[name]
    place[last] = value
    return resource


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("Deployment", "spec.template.spec.containers.0.livenesProbe", {}),
        ("Deployment", "spec.template.spec.terminationGracePeriodSeconds", "long"),
        ("HorizontalPodAutoscaler", "spec.maxReplicas", None),
        ("PodDisruptionBudget", "spec.maxUnavailabel", 1),
        ("PodMonitor", "spec.podMetricsEndpoints.0.intervall", "15s"),
        ("PodMonitor", "spec.podMetricsEndpoints.0.interval", "soon"),
        ("ServiceMonitor", "spec.selector", None),
        ("PrometheusRule", "spec.groups.0.rules.0.expression", "up"),
        ("PrometheusRule", "spec.groups.0.interval", "often"),
        ("ScaledObject", "spec.triggers.0.metricType", 1),
        ("ScaledObject", "spec.maxReplicas", 3),
    ],
)
def test_a_broken_manifest_is_not(kind: str, path: str, value: Any) -> None:
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check_resource(_set(of_kind(kind)[0], path, value))


def test_the_containers_are_restricted() -> None:
    assert len(containers()) == 3
    for pod, container in containers():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["automountServiceAccountToken"] is False
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"]
        ports = {port["name"] for port in container["ports"]}
        assert "livenessProbe" in container
        probes = [probe for name, probe in container.items() if name.endswith("Probe")]
        assert {probe["httpGet"]["port"] for probe in probes} <= ports


def test_the_probes_are_those_that_the_worker_answers() -> None:
    workers = [container for _, container in containers() if container["name"] == "worker"]
    paths = [
        {name: one["httpGet"]["path"] for name, one in worker.items() if name.endswith("Probe")} for worker in workers
    ]
    alone = {"startupProbe": "/livez", "livenessProbe": "/livez"}
    assert sorted(paths, key=len) == [alone, alone | {"readinessProbe": "/readyz"}]


def test_the_autoscalers_scale_the_worker_and_its_selectors_find_it() -> None:
    worker = next(one for one in of_kind("Deployment") if one["metadata"]["name"] == "queue-system-worker")
    labels = worker["spec"]["template"]["metadata"]["labels"]
    for scaler in of_kind("HorizontalPodAutoscaler") + of_kind("ScaledObject"):
        assert scaler["spec"]["scaleTargetRef"]["name"] == worker["metadata"]["name"]
    assert "replicas" not in worker["spec"]
    budget, pods = of_kind("PodDisruptionBudget")[0]["spec"], of_kind("PodMonitor")[0]["spec"]
    service = next(one for one in of_kind("Service") if one["metadata"]["name"] == "queue-system-metrics")
    for selector in (budget["selector"]["matchLabels"], pods["selector"]["matchLabels"], service["spec"]["selector"]):
        assert selector.items() <= labels.items()
    monitor = of_kind("ServiceMonitor")[0]["spec"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    # The job is what keda.yaml asks for, and what the rules are grouped by.
    assert {labels[pods["jobLabel"]], service["metadata"]["labels"][monitor["jobLabel"]]} == {"queue-system"}
    ports = {port["name"] for _, container in containers() for port in container["ports"]}
    assert {endpoint["port"] for endpoint in pods["podMetricsEndpoints"]} == ports


def test_the_rules_for_the_operator_are_those_for_prometheus(tmp_path: Path) -> None:
    assert TARGET.read_text() == manifest(), "run: python deploy/prometheusrule.py"
    groups = tmp_path / "rules.yml"
    groups.write_text(yaml.safe_dump(of_kind("PrometheusRule")[0]["spec"]))
    checked = run(program("promtool"), "check", "rules", groups)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_what_keda_asks_for_is_recorded(tmp_path: Path) -> None:
    queries = [trigger["metadata"]["query"] for trigger in of_kind("ScaledObject")[0]["spec"]["triggers"]]
    groups = of_kind("PrometheusRule")[0]["spec"]["groups"]
    recorded = {rule["record"] for group in groups for rule in group["rules"] if "record" in rule}
    asked = {name for query in queries for name in re.findall(r"[a-z_]+:\w+:\w+", query)}
    assert len(asked) == 2
    assert asked <= recorded
    rules = [{"record": f"query_{number}", "expr": query} for number, query in enumerate(queries)]
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "keda", "rules": rules}]}))
    checked = run(program("promtool"), "check", "rules", path)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_what_the_hpa_asks_for_is_served_by_the_documented_adapter() -> None:
    text = (ROOT / "docs" / "deployment.md").read_text()
    (block,) = re.findall(r"```yaml\n(rules:.*?)```", text, re.DOTALL)
    rules = yaml.safe_load(block)["rules"]
    served = {rule.get("name", {}).get("as", rule["seriesQuery"].split("{")[0]) for rule in rules}
    metrics = of_kind("HorizontalPodAutoscaler")[0]["spec"]["metrics"]
    assert {metric["pods"]["metric"]["name"] for metric in metrics} == served
    used = {name for rule in rules for name in re.findall(r"queue_system_(\w+)", rule["seriesQuery"])}
    assert used <= set(CATALOGUE)


# The image.


def containerfile() -> str:
    return (ROOT / "deploy" / "Containerfile").read_text()


def commands(stage: str) -> list[str]:
    """The RUN commands of a stage, without mounts."""
    body = re.search(rf"^FROM \S+ AS {stage}\n(.*?)(?=^FROM |\Z)", containerfile(), re.MULTILINE | re.DOTALL)[
        1
    ].replace("\\\n", " ")
    return [re.sub(r"--mount=\S+\s+", "", line) for line in re.findall(r"^RUN (.*)$", body, re.MULTILINE)]


def test_the_image_is_slim_pinned_and_runs_as_a_user() -> None:
    text = containerfile()
    assert re.search(r"^ARG PYTHON_IMAGE=python:\d+\.\d+\.\d+-slim-\w+$", text, re.MULTILINE)
    assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {"${PYTHON_IMAGE}", "wheels", "worker"}
    assert re.findall(r"^USER (\S+)", text, re.MULTILINE) == ["10001:10001", "0", "10001:10001"]
    assert SERVICES["worker"]["build"]["target"] in re.findall(r" AS (\S+)$", text, re.MULTILINE)
    assert (ROOT / SERVICES["worker"]["build"]["dockerfile"]).is_file()


def test_what_the_image_copies_is_there_and_not_ignored() -> None:
    sources = [part for line in re.findall(r"^COPY (.*) \S+$", containerfile(), re.MULTILINE) for part in line.split()]
    allowed = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert len(sources) == 8
    assert [source for source in sources if not (ROOT / source).exists()] == []
    assert [source for source in sources if source.split("/")[0] not in allowed] == []


def test_jaeger_is_the_version_that_the_tests_build() -> None:
    assert SERVICES["jaeger"]["image"].endswith(f":{jaeger.VERSION}")


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory for the image's files that other users may enter: pytest's own are closed to them."""
    with tempfile.TemporaryDirectory(prefix="queue-system-image-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


async def test_the_steps_of_the_image_make_a_worker_that_another_user_runs(
    home: Path, redis_url: str, prefix: str
) -> None:
    """The commands of the image file, with this machine's Python and other directories."""
    build(home)
    shutil.copytree(ROOT / "examples", home / "app", ignore=shutil.ignore_patterns("__pycache__"))
    variables = dict(re.findall(r"(QUEUE_SYSTEM_\w+)=(\S+)", containerfile()))
    variables |= {"QUEUE_SYSTEM_METRICS_PORT": str(free_port()), "QUEUE_SYSTEM_METRICS_HOST": "127.0.0.1"}
    variables |= {"QUEUE_SYSTEM_REDIS_URL": redis_url, "QUEUE_SYSTEM_QUEUE_PREFIX": prefix}
    options = {"cwd": home / "app", "env": {"PATH": "/usr/bin:/bin"} | variables, **another_user()}
    program, healthy = home / "venv/bin/queue-system", health_check(home)
    with subprocess.Popen([program, "worker", "sample_tasks"], **options) as process:  # noqa: ASYNC220  as above
        try:
            await until(lambda: process.poll() is not None or run(*healthy, **options).returncode == 0, 30, "healthy")
            assert process.poll() is None
            assert psutil.Process(process.pid).uids().real != 0
            enqueued = run(program, "enqueue", "sample_tasks:send_mail", '{"seconds": 0}', **options)
            assert enqueued.returncode == 0, enqueued.stderr
            with QueueConfig(redis_url=redis_url, queue_prefix=prefix) as config:
                await until(lambda: config.get_metrics()["processed"] == 1, 20, "processed")
        finally:
            process.terminate()
            process.wait(40)
    assert process.returncode == 0
    assert run(*healthy, **options).returncode == 1  # it is gone


def build(home: Path) -> None:
    """What the stages `wheels` and `worker` do, with `home` for their directories."""
    source, python = home / "source", home / "base/bin/python"
    source.mkdir()
    assert (
        run(python_for_all(), "-m", "venv", home / "base").returncode == 0
    )  # the image's Python has pip; so does this
    stage = containerfile().split("AS wheels")[1].split("FROM ")[0]
    for line in re.findall(r"^COPY (.*)$", stage, re.MULTILINE):
        *names, target = line.split()
        for name in names:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, source / target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, source / target)
    places = {"/wheels": f"{home}/wheels", "/opt/queue-system": f"{home}/venv", "--no-cache-dir": ""}
    for command in commands("wheels") + commands("worker"):
        for place, ours in places.items():
            command = command.replace(place, ours)  # noqa: PLW2901
        command = re.sub(r"^python ", f"{shlex.quote(str(python))} ", command)  # noqa: PLW2901
        done = run("sh", "-c", command, cwd=source)
        if re.search(r"Failed to establish a new connection|Name or service not known", done.stderr):
            missing("a package registry")
        assert done.returncode == 0, done.stderr
    assert [path.name for path in (home / "wheels").glob("queue_system-*.whl")]


def health_check(home: Path) -> list[str]:
    """The command of the image's HEALTHCHECK."""
    found = re.search(r"^HEALTHCHECK .*? CMD (\[.*?\])$", containerfile(), re.MULTILINE | re.DOTALL)
    python, *rest = json.loads(found[1].replace("\\\n", ""))
    return [f"{home}/venv/bin/{python}", *rest]


def python_for_all() -> str:
    """A Python that `another_user` may run: this one may be in somebody's home."""
    candidates = dict.fromkeys([sys._base_executable, "/usr/local/bin/python3", "/usr/bin/python3"])
    code = "import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))"
    for python in candidates:
        with contextlib.suppress(OSError):
            if run(python, "-c", code, cwd="/", env={}, **another_user()).returncode == 0:
                return python
    missing("a Python 3.11 with venv that another user may run")
    raise AssertionError


def another_user() -> dict[str, Any]:
    """Whoever runs the tests; `nobody` if that is root."""
    return {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
