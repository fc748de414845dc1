"""A module of the application that operations may name. Importing it is noted."""

from __future__ import annotations

from os import system
from subprocess import run as launch

from jobs import note

__all__ = ["launch", "system", "work"]

note("imported", __name__)


async def work(entity):
    note("worked", entity["id"])


class Tool:
    def use(self, entity):
        note("used", entity["id"])


def _private(entity):
    note("private", entity["id"])
