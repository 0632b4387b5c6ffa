"""Exceptions of the package."""

from __future__ import annotations


class MissingExtraError(RuntimeError):
    """Libraries of an optional extra are not installed; the message names them and how to install them."""


class InvalidSystemError(ValueError):
    """A part of the system is not what the theory asks for; the message names it, its value and the time."""
