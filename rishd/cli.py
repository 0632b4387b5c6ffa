"""The ``rishd`` command."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

# No other import here: an import before main() could end in a traceback on Ctrl-C.


def main() -> None:
    """Run the command; expected errors become one plain line. RISHD_TRACEBACK=1 shows the traceback."""
    ordinary = signal.signal(signal.SIGINT, _leave)  # Ctrl-C inside a library's import would end in a traceback
    from lite import NonFiniteError
    from riemannian_ode.errors import MissingExtraError
    from rishd.commands.application import app
    from rishd.commands.console import FAILED, USAGE, err

    signal.signal(signal.SIGINT, ordinary)
    try:
        app()  # exits with INTERRUPTED on Ctrl-C
    except (ValueError, OSError, MissingExtraError, NonFiniteError) as problem:
        if os.environ.get("RISHD_TRACEBACK"):
            raise
        told = (
            f"{problem.filename}: {problem.strerror}" if isinstance(problem, OSError) and problem.filename else problem
        )
        err.print(f"error: {told}", style="red", markup=False, highlight=False, soft_wrap=True)
        code = FAILED if isinstance(problem, NonFiniteError) else USAGE
        if "RANK" in os.environ and "rishd.pretraining.ranks" in sys.modules:
            from rishd.pretraining.ranks import leave

            leave(code)
        sys.exit(code)


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(128 + number)


if __name__ == "__main__":
    main()
