"""Exceptions of the package."""

from __future__ import annotations


class MissingExtraError(RuntimeError):
    """Libraries of an optional extra are not installed; the message says which, and how to install them."""


class InvalidSystemError(ValueError):
    """Part of the system violates the theory's assumptions; the message names it, its value and the time."""
