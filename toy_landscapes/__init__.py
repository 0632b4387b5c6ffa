"""Landscapes that put theoretical bounds to the test: quadratics and river valleys.

Arrays are numpy or torch with shape ``(*ensemble, p)``: the last axis holds the coordinates.
"""

from __future__ import annotations

from toy_landscapes.landscape import Landscape
from toy_landscapes.quadratic import Quadratic, indefinite_spectrum, power_law_spectrum, spiked_spectrum
from toy_landscapes.river_valley import RiverError, RiverValley

__all__ = [
    "Landscape",
    "Quadratic",
    "RiverError",
    "RiverValley",
    "indefinite_spectrum",
    "power_law_spectrum",
    "spiked_spectrum",
]
