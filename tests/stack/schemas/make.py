"""Writes the schemas beside it from their projects' Go modules: ``python tests/stack/schemas/make.py``.

Committed, so that the tests need neither a Go toolchain nor a network. Descriptions are left out, which are most of
the size; nothing that decides whether a document is valid is.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Final

import yaml

HERE: Final = Path(__file__).parent
OPERATOR: Final = "github.com/prometheus-operator/prometheus-operator@v0.85.0"
OPERATOR_CRDS: Final = "example/prometheus-operator-crd/monitoring.coreos.com_"
SOURCES: Final = {
    "compose-spec": ("github.com/compose-spec/compose-go/v2@v2.16.2", "schema/compose-spec.json"),
    "PodMonitor": (OPERATOR, f"{OPERATOR_CRDS}podmonitors.yaml"),
    "ServiceMonitor": (OPERATOR, f"{OPERATOR_CRDS}servicemonitors.yaml"),
    "PrometheusRule": (OPERATOR, f"{OPERATOR_CRDS}prometheusrules.yaml"),
    "ScaledObject": ("github.com/kedacore/keda/v2@v2.21.0", "config/crd/bases/keda.sh_scaledobjects.yaml"),
}


def main() -> None:
    for name, (module, path) in SOURCES.items():
        document = yaml.safe_load((folder(module) / path).read_text())
        if document.get("kind") == "CustomResourceDefinition":
            document = strict(document["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
        document = {"$comment": f"{path} of the Go module {module}, Apache-2.0", **without_descriptions(document)}
        (HERE / f"{name}.json").write_text(json.dumps(document, separators=(",", ":")) + "\n")


def folder(module: str) -> Path:
    with tempfile.TemporaryDirectory() as outside:  # so that no go.mod of ours takes part
        command = ["go", "mod", "download", "-json", module]
        said = subprocess.run(command, cwd=outside, capture_output=True, text=True, check=True, timeout=300)
    return Path(json.loads(said.stdout)["Dir"])


def strict(schema: Any) -> Any:
    """A field that is not in the schema is an error, as for ``kubectl apply``; what Kubernetes adds to JSON schema."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: strict(value) for key, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        schema.pop("type", None)
    if isinstance(pattern := schema.get("pattern"), str):
        schema["pattern"] = re.sub(r"^\^\(\?i\)(.*)$", r"^(?i:\1)", pattern)  # Go's way to write it, and Python's
    properties = schema.get("properties")
    if schema.get("type") == "object" and isinstance(properties, dict) and properties.keys() != {"metadata"}:
        loose = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
        schema["additionalProperties"] = schema.get("additionalProperties", bool(loose))
    return schema


def without_descriptions(schema: Any, *, names: bool = False) -> Any:
    """`names`: the keys are names of fields, one of which may be called ``description``."""
    if isinstance(schema, list):
        return [without_descriptions(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    inner = ("properties", "patternProperties", "definitions", "$defs")
    return {
        key: without_descriptions(value, names=key in inner and not names)
        for key, value in schema.items()
        if names or key != "description"
    }


if __name__ == "__main__":
    main()
