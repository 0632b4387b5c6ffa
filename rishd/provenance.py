"""Provenance of results: versions of software, and the commit of the source."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of software that affect numbers.

    Args:
        packages: Installed distributions to list after Python and the machine.
    """
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def git_state(folder: Path | None = None) -> dict[str, Any] | None:
    """Commit of a checkout and whether it has uncommitted changes; ``None`` outside a repository.

    Args:
        folder: A folder in the checkout; the working directory by default.
    """
    try:
        commit, status = (
            subprocess.run(
                ["git", *command], capture_output=True, text=True, check=True, timeout=30, cwd=folder
            ).stdout.strip()
            for command in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": bool(status)}
