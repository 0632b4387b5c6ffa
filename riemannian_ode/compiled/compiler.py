"""The C++ compiler of this machine."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

_FLAGS = ("-std=c++17", "-fPIC", "-shared")


class BuildError(RuntimeError):
    """The compiler is missing or rejected the program; the message has its first error."""


def shared_library(source: str, choices: Sequence[Sequence[str]]) -> ctypes.CDLL:
    """Build a C++ program with ``$CXX``, g++, clang++ or c++, and load it as a shared library.

    Args:
        source: The program.
        choices: Lists of flags, tried in order, since a compiler may not know all of them.

    Raises:
        BuildError: if no compiler builds it.
    """
    compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)
    if compiler is None:
        raise BuildError("no C++ compiler was found")
    with tempfile.TemporaryDirectory() as folder:  # once loaded, the library no longer needs its file
        file, library = Path(folder) / "program.cpp", Path(folder) / "program.so"
        file.write_text(source, encoding="utf-8")
        for flags in choices:
            command = [compiler, *_FLAGS, *flags, str(file), "-o", str(library)]
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=False)
            except OSError as error:
                raise BuildError(f"{compiler} cannot be run: {error}") from None
            if done.returncode == 0:
                break
        else:
            complaint = next((line for line in done.stderr.splitlines() if "error" in line), "no reason given")
            raise BuildError(f"{compiler} failed: {complaint.strip()}")
        try:
            return ctypes.CDLL(str(library))
        except OSError as error:
            raise BuildError(f"what {compiler} built cannot be loaded: {error}") from None
