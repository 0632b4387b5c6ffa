"""Sections of the report that ``rishd report`` and ``rishd demo`` share."""

from __future__ import annotations

from rishd.report.figures import valley_figure
from rishd.report.page import Section
from rishd.studies.valley import ValleyFlows


def valley_section(flows: ValleyFlows) -> Section:
    """Base and LITE flows on a river valley: the picture of the first screen."""
    return Section(
        "What LITE does",
        [
            f"It moves χ = {flows.chi:g} times as fast along flat directions, with Hessian damping β₂ = "
            f"{flows.beta_flat:g} there. Down this valley the base method takes {flows.measured_speedup:.2f} times as "
            f"long for the same fall; claim C5 predicts {flows.predicted_speedup:.2f} for a slow mode."
        ],
        valley_figure(flows),
        "Base and LITE flows from the same point, semi-implicit Euler at h = 1. Grey: height f, darker is higher. "
        "The river is solved from P(w)∇f(w) = 0, not assumed.",
    )
