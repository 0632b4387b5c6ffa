"""The local server of both pages."""

from __future__ import annotations

import socket
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import panel as pn
import torch

from rishd.exploring.flow_page import FlowPage
from rishd.exploring.results import Run, read_results
from rishd.exploring.results_page import ResultsPage

HOST = "127.0.0.1"


def serve(
    *, port: int = 0, results: Path | None = None, opens: bool = True, say: Callable[[str], object] = print
) -> None:
    """Serve the pages to this machine alone, until Ctrl-C.

    Args:
        port: TCP port; 0 for any that is free.
        results: Folder of ``rishd compare`` to explore on the second page.
        opens: Whether the browser is opened.
        say: Gets the address.

    Raises:
        ValueError: for a folder without results, or a port that is not free.
    """
    runs: Sequence[Run] = () if results is None else read_results(results)
    port = _free_port(port)
    torch.set_num_threads(1)  # on flows as small as these, threads only wait for each other
    pages = {
        "/": lambda: FlowPage(_query()).root,
        "/results": lambda: ResultsPage(_query(), runs, str(results)).root,
    }
    pn.extension()
    server = pn.serve(
        pages,
        address=HOST,
        port=port,
        websocket_origin=[f"{HOST}:{port}", f"localhost:{port}"],
        show=False,
        start=False,
        verbose=False,
        title="RISHD explorer",
    )
    url = f"http://{HOST}:{port}/"  # it listens already; what arrives before the loop runs is answered then
    say(f"{url}{'results' if runs else ''}  (Ctrl-C ends it)")
    if opens:
        webbrowser.open(url)
    server.start()
    try:
        server.io_loop.start()
    except KeyboardInterrupt:
        server.stop()


def _query() -> dict[str, str]:
    arguments: dict[str, Any] = pn.state.session_args
    return {name: values[-1].decode("utf-8", "replace") for name, values in arguments.items() if values}


def _free_port(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as problem:
            raise ValueError(f"--port {port} is not free ({problem.strerror}); give another, or 0 for any.") from None
        return int(probe.getsockname()[1])
