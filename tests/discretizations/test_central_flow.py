"""The central flow: its edge, its variance, the complementarity problem, and its errors."""

import numpy as np
import pytest

from discretizations.central_flow import CentralFlow, complementary
from discretizations.constant_rule import ConstantRule, split_rule
from discretizations.proofs import edge


class Valley:
    """f = h(u) + λ(u)s²/2 with h = −u/100 and λ = 2 + u: the river flows into a narrowing valley."""

    slope = 0.01

    def gradient(self, w):
        u, s = w[..., 0], w[..., 1]
        return np.stack([-self.slope + 0.5 * s**2, (2.0 + u) * s], -1)

    def hvp(self, w, v):
        u, s = w[..., 0], w[..., 1]
        return np.stack([s * v[..., 1], s * v[..., 0] + (2.0 + u) * v[..., 1]], -1)

    def hessian(self, w):
        return np.stack([self.hvp(w, np.broadcast_to(unit, w.shape)) for unit in np.eye(2)], -1)


def rule(eta=0.2, alpha=0.5, damping=1.0, p=2):
    return ConstantRule(eta, alpha, np.eye(p), damping * np.eye(p))


@pytest.mark.parametrize("proof", [edge.period_two, edge.averaged_motion])
def test_residuals_vanish(proof):
    assert proof() and all(residual == 0 for residual in proof())


def test_the_valley_stops_at_the_edge_with_the_variance_of_the_closed_form():
    flow = CentralFlow(Valley(), rule())
    path = flow.simulate(np.array([1.0, 0.0]), h=5.0, steps=400)
    edge_metric = 1.0 + 1.0 / 1.5
    # ηλD = 2 stops u; x² = 2·slope in s, and the variance is in the norm of D⁻¹.
    assert path.w[-1, 0] == pytest.approx(2.0 / (0.2 * edge_metric) - 2.0, rel=1e-4)
    assert path.sharpness[-1] == pytest.approx(2.0, rel=1e-4)
    assert path.variance[-1] == pytest.approx(2.0 * Valley.slope / edge_metric, rel=1e-4)
    assert path.critical[-1] == 1 and "critical from t = " in path.status


def test_without_a_critical_direction_it_is_gradient_flow_and_says_so():
    start = np.array([1.0, 0.3])
    path, plain = (
        CentralFlow(Valley(), rule(), oscillates=on).simulate(start, h=1.0, steps=20) for on in (True, False)
    )
    assert np.array_equal(path.w, plain.w)
    assert path.status == "plain gradient flow: no direction became critical"
    u = start[0] + Valley.slope * 0.2 * (1.0 + 2.0) * path.times[-1]  # once s has vanished
    assert path.w[-1, 0] == pytest.approx(u, abs=0.05)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_complementarity(k):
    rng = np.random.default_rng(k)
    for _ in range(20):
        root = rng.normal(size=(k * k, k * k))
        matrix, offset = root @ root.T + np.eye(k * k), rng.normal(size=(k, k))
        offset = offset + offset.T
        flip = np.arange(k * k).reshape(k, k).T.ravel()
        matrix = 0.5 * (matrix + matrix[flip][:, flip])  # maps symmetric matrices to symmetric ones
        matrix = 0.5 * (matrix + matrix[flip])
        matrix = 0.5 * (matrix + matrix[:, flip])
        x = complementary(matrix, offset)
        slack = (matrix @ x.ravel()).reshape(k, k) + offset
        assert np.linalg.eigvalsh(x)[0] > -1e-9
        assert np.linalg.eigvalsh(0.5 * (slack + slack.T))[0] > -1e-6
        assert abs((x * slack).sum()) < 1e-6


def test_bad_input_is_refused():
    flow = CentralFlow(Valley(), rule())
    with pytest.raises(ValueError, match=r"damping has the eigenvalue -1, below −α/\(2 − α\)² = -0.222"):
        CentralFlow(Valley(), rule(damping=-1.0))
    with pytest.raises(ValueError, match=r"objective\.hessian is of type NoneType"):
        CentralFlow(object.__new__(type("G", (), {"gradient": min, "hvp": min})), rule())
    for critical in (0, 1.5, np.nan, True):
        with pytest.raises(ValueError, match=f"critical = {critical} must be a whole number of at least 1"):
            CentralFlow(Valley(), rule(), critical=critical)
    with pytest.raises(ValueError, match="rule is of type float; give a ConstantRule"):
        CentralFlow(Valley(), 0.1)
    with pytest.raises(ValueError, match="rule is an ensemble"):
        CentralFlow(Valley(), ConstantRule(np.ones(3), 0.1, np.eye(2), np.eye(2)))
    with pytest.raises(ValueError, match=r"w0 has shape \(3,\)"):
        flow.simulate(np.zeros(3), h=1.0, steps=1)
    for start, problem in ((np.full(2, np.nan), "non-finite"), (1j * np.ones(2), "dtype complex128")):
        with pytest.raises(ValueError, match=problem):
            flow.simulate(start, h=1.0, steps=1)
    for steps in (0, 2.5):
        with pytest.raises(ValueError, match=f"steps = {steps}"):
            flow.simulate(np.zeros(2), h=1.0, steps=steps)
    with pytest.raises(ValueError, match="h = -1"):
        flow.simulate(np.zeros(2), h=-1.0, steps=1)


def test_flat_directions_with_damping_have_an_edge_of_their_own():
    """α = 0.05, β₂ = 20: κ = 0.0975 against 3.9."""
    flat, sharp = (
        split_rule(eta=1.0, alpha=0.05, sharp=np.eye(2)[:, :1], beta_flat=20.0).edge_metric[i, i] for i in (1, 0)
    )
    assert 2.0 / flat == pytest.approx(0.0975, rel=1e-3)
    assert 2.0 / sharp == pytest.approx(3.9)
