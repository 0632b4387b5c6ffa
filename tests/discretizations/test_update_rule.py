"""The update rule against known optimizers."""

import numpy as np
import pytest
import torch

from discretizations.preconditioners.second_moment import SecondMoment
from discretizations.update_rule import UpdateRule, lite_step


@pytest.mark.parametrize("nesterov", [False, True])
def test_heavy_ball_and_nesterov_are_torch_sgd(nesterov):
    """Dictionary: μ = 1 − α; heavy ball η = lr, β = 0; Nesterov η = lr·μ, β = 1/μ."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(6, 6, dtype=torch.float64, generator=generator)
    start = torch.randn(6, dtype=torch.float64, generator=generator)
    mu, lr = 0.9, 0.01
    p = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.SGD([p], lr=lr, momentum=mu, nesterov=nesterov)
    w, m = start, torch.zeros_like(start)
    for _ in range(100):
        optimizer.zero_grad()
        (0.5 * (matrix @ p).square().sum()).backward()
        optimizer.step()
        g = matrix.T @ (matrix @ w)
        w, m = lite_step(w, m, g, eta=lr * mu if nesterov else lr, alpha=1 - mu, nesterov=1 / mu if nesterov else 0.0)
    torch.testing.assert_close(w, p.detach(), rtol=1e-12, atol=1e-12)


def test_adam_up_to_the_place_of_epsilon():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(20, dtype=torch.float64, generator=generator)
    beta1, beta2, lr = 0.9, 0.99, 0.01
    p = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.Adam([p], lr=lr, betas=(beta1, beta2), eps=1e-14)
    metric = SecondMoment(beta2=beta2, eps=1e-14, eps_first=True)
    rule = UpdateRule(preconditioner=metric, alpha=1 - beta1, gain=1 - beta1, corrects_momentum=True)
    state = rule.start(start)
    for _ in range(50):
        state = rule.step(state, torch.sin(3 * state.w) + state.w, eta=lr)
        p.grad = torch.sin(3 * p.detach()) + p.detach()
        optimizer.step()
    torch.testing.assert_close(state.w, p.detach(), rtol=1e-9, atol=1e-9)


def test_split_moves_flat_directions_chi_times_as_far(rng):
    w, m, g = np.zeros(4), np.zeros(4), rng.normal(size=4)
    step = lite_step(w, m, g, eta=0.1, alpha=0.1, split=lambda *_: lambda x: x * [0, 0, 1, 1], chi=3.0, beta_flat=0.5)
    np.testing.assert_allclose(step.w[:2], -0.1 * g[:2])
    np.testing.assert_allclose(step.w[2:], -0.1 * 3.0 * 1.5 * g[2:])


def test_split_is_asked_at_the_new_momentum_with_the_gradient_ahead(rng):
    """At m̃ = m_k + νg, not at m_k or m_{k−1}, and at a = F⁻¹m̃."""
    w, m, g = rng.normal(size=(3, 4))
    asked = []

    def split(*point):
        asked.append(point)
        return lambda x: 0.0 * x

    lite_step(w, m, g, eta=0.1, alpha=0.3, precondition=lambda x: 2.0 * x, split=split, chi=2.0, nesterov=0.6)
    ahead = 0.7 * m + g + 0.6 * g
    np.testing.assert_allclose(asked, [(ahead, 2.0 * ahead)], rtol=1e-13)
