"""Plots of modes show the closed forms."""

import numpy as np
import pytest

from discretizations import plot_modes, plot_stability
from discretizations.stability import flat_rate, stable_limit


def test_rates_of_modes_are_those_of_flow_and_rule():
    axes = plot_modes(0.1, {"base": 0.0, "LITE": 5.0})
    lines = {line.get_label(): line for line in axes.get_lines()}
    kappa, rate = lines["LITE, flow"].get_data()
    np.testing.assert_allclose(rate, flat_rate(kappa, 0.1, 5.0))
    kappa, rate = lines["LITE, update rule"].get_data()
    assert kappa[np.isfinite(rate)].max() == pytest.approx(float(stable_limit(0.1, 5.0)), rel=0.05)
    axes.figure.canvas.draw()


def test_limits_of_stability_are_the_closed_ones():
    axes = plot_stability(0.05, marks={"Muon": (0.5, 0.0)})
    lines = {line.get_label(): line for line in axes.get_lines()}
    limit, beta = lines["stable below (C6)"].get_data()
    np.testing.assert_allclose(limit, stable_limit(0.05, beta))
    assert [text.get_text() for text in axes.texts] == ["Muon"]
    axes.figure.canvas.draw()
