"""The Lua scripts, read once, with the digest under which Redis knows them."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Final

_PLACE: Final = "  -- functions\n"
_FUNCTION: Final = re.compile(r"^(local function (\w+)\(.*?^end\n)", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Script:
    """Source and SHA-1 of one script."""

    name: str
    source: str
    sha: str


@cache
def load_scripts() -> dict[str, Script]:
    """All scripts by name; each has those shared functions in front of it that it needs."""
    folder = resources.files("queue_system.broker") / "lua"
    common = (folder / "common.lua").read_text("utf-8")
    scripts: dict[str, Script] = {}
    for entry in folder.iterdir():
        name = entry.name.removesuffix(".lua")
        if name not in {entry.name, "common"}:
            scripts[name] = make_script(name, with_functions(common, entry.read_text("utf-8")))
    return scripts


def with_functions(common: str, source: str) -> str:
    """A source with those functions of `common` that it calls, and those that they call, in front of it.

    Functions are made anew whenever a script runs. One that mostly needs none has a line with `_PLACE` in each block
    that needs some.
    """
    front, *blocks = source.split(_PLACE)
    if not blocks:
        return f"{_functions(common, front)}{front}"
    return _PLACE.join((front, *(f"{_functions(common, block)}{block}" for block in blocks)))


def _functions(common: str, source: str) -> str:
    functions = ""
    for text, name in reversed(_FUNCTION.findall(common)):  # a function calls only those above it
        if re.search(rf"\b{name}\(", functions + source):
            functions = f"{text}\n{functions}"
    return functions


def make_script(name: str, source: str) -> Script:
    """A script from its whole source."""
    # SHA-1 is how Redis names scripts: an address, not a protection.
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())
