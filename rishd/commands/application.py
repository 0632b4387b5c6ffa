"""The ``rishd`` application with all its commands."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from rishd.commands.compare import compare
from rishd.commands.demo import demo
from rishd.commands.explore import explore
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
for _command in (validate, report, integrators, study, correspondence, pretrain, compare, probe, explore, demo):
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
