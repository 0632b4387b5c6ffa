"""``rishd explore``: flows and recorded comparisons in the browser (needs the ``explore`` extra)."""

from __future__ import annotations

from riemannian_ode import checks


def require_extra() -> None:
    """Raise an error if the ``explore`` extra is missing.

    Raises:
        MissingExtraError: naming what is missing and how to install it.
    """
    checks.require_extra("explore", "rishd explore", ("panel", "panel_material_ui", "bokeh"))
