"""Formats that can be run, and not written."""

BACKENDS = ()
