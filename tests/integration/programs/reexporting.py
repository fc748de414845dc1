"""A module of the application that nothing but a hostile operation names. Importing it is noted."""

from __future__ import annotations

from os import system

from jobs import note

note("imported", __name__)

__all__ = ["system"]
