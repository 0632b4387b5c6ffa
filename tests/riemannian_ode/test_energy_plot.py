"""The plot of energies: it draws the balance, and ensembles are refused."""

import numpy as np
import pytest

from riemannian_ode import RISHD, energy_identity_residual, simulate
from tests.riemannian_ode.problems import Bowl


def test_the_energy_plot_shows_the_balance():
    system = RISHD.from_optimizer(Bowl(), alpha=0.5, eta=0.2)
    run = simulate(system, np.array([1.0, -2.0]), integrator="rk4", h=0.1, steps=50)
    balance = energy_identity_residual(system, run)
    axes = run.plot_energy(system)
    lines = {line.get_label(): line.get_ydata() for line in axes.get_lines()}
    np.testing.assert_allclose(lines["energy E"], balance.energy)
    np.testing.assert_allclose(lines["E + dissipated"], balance.energy[0], rtol=1e-6)
    np.testing.assert_allclose(lines["value f(w)"], Bowl().value(run.w))
    assert axes.figure._repr_png_().startswith(b"\x89PNG")  # notebooks show it
    ensemble = simulate(system, np.ones((3, 2)), integrator="rk4", h=0.1, steps=50)
    with pytest.raises(ValueError, match=r"ensemble of shape \(3,\)"):
        ensemble.plot_energy(system)
    with pytest.raises(ValueError, match="at least 6"):
        simulate(system, np.ones(2), steps=2).plot_energy(system)
