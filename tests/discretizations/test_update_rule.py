"""The update rule against known optimizers."""

import numpy as np
import pytest
import torch

from discretizations import (
    EigenbasisMoment,
    GradedMask,
    Identity,
    KroneckerRoot,
    PolarFactor,
    SecondMoment,
    Sign,
    TrackedSubspace,
    UpdateRule,
)
from discretizations.update_rule import lite_step
from riemannian_ode.flow import differ
from riemannian_ode.stages import initial_memory


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
    rule = UpdateRule(
        preconditioner=SecondMoment(beta2=beta2, eps=1e-14, eps_first=True),
        alpha=1 - beta1,
        gain=1 - beta1,
        corrects_momentum=True,
    )
    state = rule.start(start)
    for _ in range(50):
        p.grad = torch.sin(3 * p.detach()) + p.detach()
        optimizer.step()
        state = rule.step(state, torch.sin(3 * state.w) + state.w, eta=lr)
    torch.testing.assert_close(state.w, p.detach(), rtol=1e-9, atol=1e-9)


def test_split_moves_flat_directions_chi_times_as_far(rng):
    w, m, g = np.zeros(4), np.zeros(4), rng.normal(size=4)
    step = lite_step(w, m, g, eta=0.1, alpha=0.1, split=lambda *_: lambda x: x * [0, 0, 1, 1], chi=3.0, beta_flat=0.5)
    np.testing.assert_allclose(step.w[:2], -0.1 * g[:2])
    np.testing.assert_allclose(step.w[2:], -0.1 * 3.0 * 1.5 * g[2:])


def test_split_is_asked_at_the_new_momentum_with_the_gradient_ahead(rng):
    """The split is evaluated at m̃ = m_k + νg, not at m_k or m_{k−1}, and at a = F⁻¹m̃."""
    w, m, g = rng.normal(size=(3, 4))
    asked = []

    def split(*point):
        asked.append(point)
        return lambda x: 0.0 * x

    lite_step(w, m, g, eta=0.1, alpha=0.3, precondition=lambda x: 2.0 * x, split=split, chi=2.0, nesterov=0.6)
    ahead = 0.7 * m + g + 0.6 * g
    np.testing.assert_allclose(asked, [(ahead, 2.0 * ahead)], rtol=1e-13)


@pytest.mark.parametrize(
    "preconditioner",
    [
        SecondMoment(beta2=0.9),
        PolarFactor(mask=TrackedSubspace(sharp_fraction=0.5)),
        KroneckerRoot(beta2=0.9, eps=1e-2, sharp_fraction=0.5),
    ],
)
def test_a_batch_is_its_members(preconditioner):
    """Memory and the momentum's mass have one batch axis in front, and every member is independent."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(3, 4, 3, dtype=torch.float64, generator=generator)
    rule = UpdateRule(preconditioner=preconditioner, alpha=0.1, gain=0.1, corrects_momentum=True)
    states = [rule.start(w, batch=1), *(rule.start(x) for x in w)]
    assert all(array.shape[0] == 3 for array in states[0].memory.values())
    alone = rule.initial_memory(w[0])
    assert alone["momentum_mass"].shape == ()
    assert {key: (3, *x.shape) for key, x in alone.items()} == {key: x.shape for key, x in states[0].memory.items()}
    for _ in range(3):
        states = [rule.step(state, torch.sin(3 * state.w) + state.w, eta=0.1) for state in states]
    torch.testing.assert_close(states[0].w, torch.stack([state.w for state in states[1:]]), rtol=1e-10, atol=1e-12)


class _Recorded(Identity):
    """Jumps after every step, and records its arguments."""

    def __init__(self):
        self.told = []

    def due(self, step, numbers=(0,)):
        self.told.append((step, tuple(numbers)))
        return [0]

    def jump(self, memory, m, step, *, due=(0,), is_phase=False):
        self.told.append((step, tuple(due), is_phase))
        return memory, 2.0 * m


def test_memory_jumps_with_the_number_of_gradients_taken_in():
    rule = UpdateRule(preconditioner=_Recorded(), alpha=0.5)
    state = rule.start(np.zeros(2))
    for _ in range(3):
        state = rule.step(state, np.ones(2), eta=1.0)
    assert rule.preconditioner.told == [x for k in (1, 2, 3) for x in ((k, (0,)), (k, (0,), False))]
    np.testing.assert_array_equal(state.m, [2.0 * (0.5 * 2.0 * (0.5 * 2.0 + 1.0) + 1.0)] * 2)


def test_directing_hands_over_step_numbers_phase_and_velocity():
    rule = UpdateRule(preconditioner=_Recorded(), alpha=0.5, chi_sharp=3.0, is_split=False)
    taken = rule.take_in(np.zeros(2), {}, np.ones(2))
    np.testing.assert_array_equal(rule.direct(taken).u, [3.0, 3.0])
    directed = rule.direct(
        taken, w=np.ones(2), step=5, numbers=(7, 8), is_phase=True, velocity=lambda a, d, **settings: 10.0 * a
    )
    np.testing.assert_array_equal(directed.u, [10.0, 10.0])
    assert rule.preconditioner.told == [(0, (0,)), (0, (0,), False), (5, (7, 8)), (5, (0,), True)]


def test_arrays_count_as_different_and_numbers_by_their_value():
    assert differ(0.0, np.zeros(2))
    assert differ(np.zeros(2), 0)
    assert differ(1, 2.0)
    assert not differ(1, 1.0)


def test_a_function_without_a_split_has_no_flat_directions():
    """χ and β₂ act on nothing there; coefficients other than those of the base method are 1, 0 and 1 by default."""
    w, m, g = np.ones(2), np.ones(2), np.array([1.0, -2.0])
    step = lite_step(w, m, g, eta=0.1, alpha=0.2)
    np.testing.assert_allclose(step.m, 0.8 + g)
    np.testing.assert_allclose(step.w, 1.0 - 0.1 * (0.8 + g))
    np.testing.assert_array_equal(lite_step(w, m, g, eta=0.1, alpha=0.2, chi=3.0, beta_flat=0.5).w, step.w)
    half = lite_step(w, m, g, eta=0.1, alpha=0.2, split=lambda *_: lambda x: 0.5 * x)
    np.testing.assert_allclose(half.w, step.w)


def test_parameters_that_are_no_matrices_are_refused_behind_the_batch():
    rule = UpdateRule(preconditioner=PolarFactor(), alpha=0.1)
    rule.start(torch.zeros(5, 4, 3), batch=1)
    with pytest.raises(ValueError, match="made for matrices"):
        rule.start(torch.zeros(5, 4, 3))
    with pytest.raises(ValueError, match="made for matrices"):
        rule.start(torch.zeros(5, 4), batch=1)


def test_without_parameters_a_direction_has_no_decay():
    rule = UpdateRule(preconditioner=Identity(), alpha=0.5, decay=0.5)
    taken = rule.take_in(np.zeros(2), {}, np.ones(2))
    np.testing.assert_array_equal(rule.direct(taken).u, [1.0, 1.0])
    np.testing.assert_array_equal(rule.direct(taken, w=np.ones(2)).u, [1.5, 1.5])


class _Known(Identity):
    """F⁻¹x = x³ with a flat second coordinate; its memory counts gradients."""

    is_linear = False

    def initial(self, w, *, batch=0):
        return {"seen": 0, "batch": batch}

    def observe(self, memory, g, frame_g, *, h=1.0):
        return memory | {"seen": memory["seen"] + 1}

    def raise_index(self, memory, covector):
        return covector**3

    def flat(self, memory, covector, raised, *, h=1.0):
        return lambda x: x * [0.0, 1.0], memory | {"h": h}


SETTINGS = {"alpha": 0.2, "gain": 0.7, "nesterov": 0.3, "chi": 2.0, "beta_sharp": 0.4, "beta_flat": 0.6}
W, M, G = np.array([3.0, -4.0]), np.array([0.5, 0.2]), np.array([0.3, 0.8])
AHEAD = 0.8 * M + 0.7 * G + 0.3 * G


@pytest.mark.parametrize("is_inside", [False, True])
def test_a_step_is_algorithm_one_with_all_its_settings(is_inside):
    """And :func:`lite_step` is the same step for the settings that it has."""
    rule = UpdateRule(preconditioner=_Known(), chi_sharp=0.5, decay=0.1, damps_inside=is_inside, **SETTINGS)
    state = rule.step(rule.start(W)._replace(m=M, step=4), G, eta=0.3)
    beta, chi = np.array([0.4, 0.6]), np.array([0.5, 2.0])
    direction = (AHEAD + beta * G) ** 3 if is_inside else AHEAD**3 + beta * G**3
    np.testing.assert_allclose(state.w, W - 0.3 * chi * (direction + 0.1 * W), rtol=1e-13)
    np.testing.assert_allclose(state.m, 0.8 * M + 0.7 * G, rtol=1e-13)
    assert state.memory == {"seen": 1, "batch": 0, "h": 1.0} and state.step == 5
    if not is_inside:
        known = _Known()
        step = lite_step(
            W, M, G, eta=0.3, precondition=lambda x: x**3, split=lambda *_: known.flat({}, None, None)[0],
            decay=0.1 * W, **SETTINGS,
        )  # fmt: skip
        np.testing.assert_allclose(step.w, W - 0.3 * np.array([1.0, 2.0]) * (direction + 0.1 * W), rtol=1e-13)
        np.testing.assert_allclose(step.m, state.m, rtol=1e-13)


def test_decay_is_plain_cautious_or_replaced_by_a_constant_norm():
    base = {"preconditioner": Identity(), "alpha": 1.0, "decay": 0.1}
    for settings, direction in (
        ({}, G + 0.1 * W),
        ({"is_cautious": True}, G + 0.1 * W * [1.0, 0.0]),
        ({"corrects_momentum": True}, G + 0.1 * W),
    ):
        rule = UpdateRule(**base | settings)
        np.testing.assert_allclose(rule.step(rule.start(W), G, eta=0.3).w, W - 0.3 * direction, rtol=1e-13)
    w = np.outer([1.0, 2.0], W)
    rule = UpdateRule(**base | {"keeps_norm": True})
    landed = rule.step(rule.start(w), np.outer([1.0, -1.0], G), eta=0.3).w
    ahead = w - 0.3 * np.linalg.norm(w) / (2**0.5 * np.linalg.norm(G)) * np.outer([1.0, -1.0], G)
    np.testing.assert_allclose(landed, ahead * np.linalg.norm(w) / np.linalg.norm(ahead), rtol=1e-12)


def test_a_first_gradient_that_only_sets_up_the_memory_moves_nothing():
    """Jumps then count from the second gradient on."""

    class Skips(_Recorded):
        skips_first = True

        def first(self, memory, g):
            return memory | {"first": g}

    rule = UpdateRule(preconditioner=Skips(), alpha=0.5)
    state = rule.step(rule.start(W)._replace(m=M), G, eta=1.0)
    assert state.w is W and state.m is M and state.step == 1
    assert state.memory == {"first": G}
    second = rule.step(state, G, eta=1.0)
    np.testing.assert_allclose(second.w, W - (0.5 * M + G))
    assert second.step == 2 and rule.preconditioner.told[0] == (1, (0,))


def test_a_rule_with_another_preconditioner_keeps_its_settings():
    rule = UpdateRule(preconditioner=_Known(), is_cautious=True, is_split=False, **SETTINGS)
    other = rule.with_preconditioner(Identity())
    assert isinstance(other.preconditioner, Identity)
    assert vars(other) | {"preconditioner": rule.preconditioner} == vars(rule)


def test_the_mass_is_in_the_memory_only_if_the_momentum_is_corrected():
    for corrects, keys in ((False, {"seen", "batch"}), (True, {"seen", "batch", "momentum_mass"})):
        memory = initial_memory(_Known(), np.ones((2, 3)), corrects_momentum=corrects)
        assert set(memory) == keys and memory["batch"] == 0
        assert memory.get("momentum_mass", np.zeros(())).shape == ()


def test_a_rule_that_splits_needs_sharp_directions():
    for split in ({"chi": 2.0}, {"beta_flat": 0.5}, {"is_split": True}):
        for base in (Identity(), PolarFactor(), SecondMoment(beta2=0.9), EigenbasisMoment(beta2=0.9)):
            with pytest.raises(ValueError, match=f"'{base.name}' has no sharp directions; keep chi = 1"):
                UpdateRule(preconditioner=base, alpha=0.1, **split)
    for masked in (Sign(), KroneckerRoot(beta2=0.9, eps=1e-3), PolarFactor(mask=GradedMask())):
        assert UpdateRule(preconditioner=masked, alpha=0.1, chi=2.0).splits
