"""Runs the whole system on one machine, without containers: ``python -m stack``."""
