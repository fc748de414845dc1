"""The scripts as they are sent: each with the shared functions that it needs, and without the others."""

from __future__ import annotations

import re

import pytest

from queue_system.broker.scripts import load_scripts, with_functions

COMMON = """-- Shared.

-- The first.
local function one(x)
  return x + 1
end

local function two(x)
  if x == 0 then return 0 end
  return one(x)
end

local function three(x)
  return x
end
"""
ONE, TWO = (f"local function {name}(" for name in ("one", "two"))
SCRIPTS = pytest.mark.parametrize("script", load_scripts().values(), ids=lambda script: script.name)


def code(source: str) -> str:
    """Without comments and texts."""
    return re.sub(r"--.*|'[^'\n]*'", "", source)


def test_a_function_comes_with_those_that_it_calls_in_their_order():
    source = with_functions(COMMON, "return two(1)\n")
    assert source.index(ONE) < source.index(TWO) < source.index("return two(1)")
    assert "three" not in source


def test_a_name_that_only_ends_like_that_of_a_function_brings_none():
    assert with_functions(COMMON, "return someone(1) + one\n") == "return someone(1) + one\n"


@SCRIPTS
def test_every_function_that_is_called_is_there_and_was_defined_before(script):
    seen = {"function", "tonumber", "tostring", "type", "unpack", "ipairs", "pairs", "error", "and", "or", "if", "not"}
    seen |= {"return", "elseif", "in", "while", "until", "next", "select", "setmetatable", "pcall", "then"}
    for defined, called in re.findall(r"local function (\w+)|(?<![\w.:])(\w+) ?\(", code(script.source)):
        assert defined or called in seen
        seen.add(defined)


@SCRIPTS
def test_no_function_is_there_that_is_not_called(script):
    for name in re.findall(r"^local function (\w+)", script.source, re.MULTILINE):
        assert len(re.findall(rf"\b{name}\b", code(script.source))) > 1
