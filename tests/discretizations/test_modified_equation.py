"""The modified equation of discretisations, its symbolic proofs, and the rule with constant metric and split."""

import numpy as np
import pytest

from discretizations.constant_rule import ConstantRule, split_rule
from discretizations.modified_equation import PenalisedObjective, modified_field
from discretizations.proofs import modified
from discretizations.schemes import ONE_GRADIENT_SCHEMES, Kick
from discretizations.update_rule import lite_step


class Quartic:
    """f = Σ wᵢ²/2 + (Σ wᵢ)⁴/4, for points of any leading shape."""

    def value(self, w):
        return 0.5 * (w**2).sum(-1) + 0.25 * w.sum(-1) ** 4

    def gradient(self, w):
        return w + w.sum(-1, keepdims=True) ** 3

    def hvp(self, w, v):
        return v + 3.0 * w.sum(-1, keepdims=True) ** 2 * v.sum(-1, keepdims=True)


@pytest.mark.parametrize("scheme", ONE_GRADIENT_SCHEMES)
def test_leading_terms_are_proved(scheme):
    assert all(residual == 0 for residual in modified.leading_term_residuals(scheme))


@pytest.mark.parametrize("wrong", [Kick(1, 0, 0), Kick(0, 1, 0), Kick(0, 0, 1)])
def test_a_wrong_coefficient_is_not_proved(wrong, monkeypatch):
    right = modified.kick_expansion
    monkeypatch.setattr(
        modified,
        "kick_expansion",
        lambda name: Kick(*(lambda a, f=f, x=x: f(a) + x for f, x in zip(right(name), wrong, strict=True))),
    )
    assert any(residual != 0 for residual in modified.leading_term_residuals("semi-implicit-euler"))


@pytest.mark.parametrize("proof", [modified.penalised_flow, modified.mode_coefficients])
def test_residuals_vanish(proof):
    assert proof() and all(residual == 0 for residual in proof())


def test_gradient_of_the_penalised_objective():
    rng = np.random.default_rng(0)
    rule = split_rule(eta=0.3, alpha=0.1, sharp=np.eye(3)[:, :1], chi=2.0, beta_sharp=0.5, beta_flat=4.0)
    penalised, w, v = PenalisedObjective(Quartic(), rule, 0.7), *rng.normal(size=(2, 5, 3))
    slope = (penalised.value(w + 1e-6 * v) - penalised.value(w - 1e-6 * v)) / 2e-6
    np.testing.assert_allclose((penalised.gradient(w) * v).sum(-1), slope, rtol=1e-6)


def test_constant_rule_is_the_update_rule():
    rng = np.random.default_rng(1)
    sharp = np.linalg.qr(rng.normal(size=(4, 2)))[0]
    flat = np.eye(4) - sharp @ sharp.T
    settings = {"eta": 0.2, "alpha": 0.3, "chi": 3.0, "beta_sharp": 0.5, "beta_flat": 2.0}
    w, m, g = rng.normal(size=(3, 4))
    found = split_rule(sharp=sharp, **settings).step(w, m, g)
    expected = lite_step(w, m, g, split=lambda *_: lambda x: flat @ x, **settings)
    np.testing.assert_allclose(found.w, expected.w, rtol=1e-13)
    np.testing.assert_allclose(found.m, expected.m, rtol=1e-13)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eta": 0.0}, "eta = 0.0 must be positive"),
        ({"eta": np.inf}, "eta = inf must be positive and finite"),
        ({"alpha": 0.5 + 1j}, r"must lie in \(0, 2\)"),
        ({"inverse_metric": [[1.0, 0.0], [0.0, 1.0]]}, "must be a numpy array of finite floats"),
        ({"inverse_metric": np.eye(2) * (1 + 1j)}, "must be a numpy array of finite floats"),
        ({"damping": np.full((2, 2), np.nan)}, "damping = .* must be a numpy array of finite floats"),
        (
            {"inverse_metric": np.stack([np.eye(2)] * 3), "damping": np.zeros((3, 2, 2)), "eta": np.ones(2)},
            "one for each",
        ),
        ({"alpha": 2.0}, r"alpha = 2.0 must lie in \(0, 2\)"),
        ({"inverse_metric": -np.eye(2)}, "eigenvalue -1; it must be positive definite"),
        ({"inverse_metric": np.array([[1.0, 0.5], [0.0, 1.0]])}, "inverse_metric must be symmetric"),
        ({"damping": np.array([[0.0, 1.0], [0.0, 0.0]])}, "damping must be symmetric"),
        ({"inverse_metric": np.diag([1.0, 2.0]), "damping": np.ones((2, 2))}, "damping must commute"),
        ({"damping": np.eye(3)}, "square matrices of one shape"),
        ({"inverse_metric": 1.0, "damping": 0.0}, r"shape \(\) .* such as np.eye"),
    ],
)
def test_bad_rules_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ConstantRule(**{"eta": 0.1, "alpha": 0.1, "inverse_metric": np.eye(2), "damping": np.eye(2), **changes})


@pytest.mark.parametrize("sharp", [np.eye(3)[0], 2.0 * np.eye(3)[:, :1], np.ones((3, 2)) / 3**0.5])
def test_a_split_needs_an_orthonormal_basis(sharp):
    with pytest.raises(ValueError, match="columns must be orthonormal"):
        split_rule(eta=0.1, alpha=0.1, sharp=sharp, chi=2.0)


def test_bad_requests_are_refused():
    rule = ConstantRule(0.1, 0.1, np.eye(2), np.eye(2))
    with pytest.raises(ValueError, match="scheme = 'euler' is unknown"):
        modified_field(Quartic(), rule, "euler", h=1.0)
    with pytest.raises(ValueError, match=r"h = 0.0 must be"):
        modified_field(Quartic(), rule, "explicit-euler", h=0.0)
