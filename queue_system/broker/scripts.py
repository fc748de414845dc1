"""The Lua scripts, read once, with the digest under which Redis knows them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True, slots=True)
class Script:
    """Source and SHA-1 of one script."""

    name: str
    source: str
    sha: str


@cache
def load_scripts() -> dict[str, Script]:
    """All scripts by name; each has the shared functions in front of it."""
    folder = resources.files("queue_system.broker") / "lua"
    common = (folder / "common.lua").read_text("utf-8")
    scripts: dict[str, Script] = {}
    for entry in folder.iterdir():
        name = entry.name.removesuffix(".lua")
        if name not in {entry.name, "common"}:
            scripts[name] = make_script(name, f"{common}\n{entry.read_text('utf-8')}")
    return scripts


def make_script(name: str, source: str) -> Script:
    """A script from its whole source."""
    # SHA-1 is how Redis names scripts: an address, not a protection.
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())
