"""The symbolic proofs of energies and Lyapunov functions."""

import pytest

from discretizations.proofs import lyapunov, noise


@pytest.mark.parametrize(
    "proof",
    [
        lyapunov.split_energy,
        lyapunov.convex_flow,
        lyapunov.descent_certificate,
        lyapunov.convex_step,
        lyapunov.circle_threshold,
        noise.stationary_noise,
        noise.flow_noise,
        lyapunov.exponential_rate,
        lyapunov.strongly_convex_flow,
        lyapunov.vanishing_damping_flow,
    ],
)
def test_residuals_vanish(proof):
    residuals = proof()
    assert residuals
    assert all(residual == 0 for residual in residuals)


def test_a_wrong_step_is_not_proved(monkeypatch):
    """Momentum that decays by 1 − 2α instead of 1 − α."""
    right = lyapunov._step

    def wrong():
        x = right()
        x["new_m"] = x["new_m"] - x["alpha"] * x["m"]
        return x

    monkeypatch.setattr(lyapunov, "_step", wrong)
    assert any(residual != 0 for residual in lyapunov.convex_step())
