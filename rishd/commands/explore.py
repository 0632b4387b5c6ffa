"""``rishd explore``: flows and results in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rishd.commands.console import out


def explore(
    results: Annotated[
        Path | None, typer.Option(help="Folder of rishd compare, for the page of results.", show_default=False)
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 is any that is free.")] = 0,
    opens: Annotated[bool, typer.Option("--open/--no-open", help="Whether the browser is opened.")] = True,
) -> None:
    """Move learning rate, χ and β in the browser and watch base and LITE; explore the runs of a comparison.

    The pages are served to this machine alone. Ctrl-C ends the server.
    """
    from rishd.exploring import require_extra

    require_extra()
    if results is not None:
        from rishd.pretraining import require_extra as require_train

        require_train()
    from rishd.exploring.serving import serve

    serve(port=port, results=results, opens=opens, say=lambda line: out.print(line, highlight=False, soft_wrap=True))
