"""The ``rishd`` command."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from rishd.commands.compare import compare
from rishd.commands.console import FAILED, INTERRUPTED, USAGE, err
from rishd.commands.demo import demo
from rishd.commands.probe import probe
from rishd.commands.studies import correspondence, integrators, study
from rishd.commands.theory import report, validate
from rishd.commands.training import pretrain

app = typer.Typer(
    name="rishd",
    help="From the ODE of an optimizer to the optimizer that trains a language model.",
    epilog="Exit codes: 0 done, 1 a check failed, 2 bad input, 130 interrupted. Tables go to standard output, or JSON "
    "with --format json; progress and errors to standard error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _command in (validate, report, integrators, study, correspondence, pretrain, compare, probe, demo):
    app.command()(_command)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"rishd {version('rishd')}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command; expected errors become one plain line. RISHD_TRACEBACK=1 shows where they came from."""
    from lite import NonFiniteError
    from rishd.pretraining import MissingExtraError

    try:
        app()
    except (ValueError, OSError, MissingExtraError, NonFiniteError) as problem:
        if os.environ.get("RISHD_TRACEBACK"):
            raise
        told = (
            f"{problem.filename}: {problem.strerror}" if isinstance(problem, OSError) and problem.filename else problem
        )
        err.print(f"error: {told}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(FAILED if isinstance(problem, NonFiniteError) else USAGE)
    except KeyboardInterrupt:
        err.print("interrupted")
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
