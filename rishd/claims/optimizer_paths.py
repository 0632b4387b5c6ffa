"""Known optimizers in three forms for claim C12: as a flow, as an update rule and as a torch optimizer of ``lite``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from discretizations.preconditioners.eigenbasis_moment import EigenbasisMoment
from discretizations.preconditioners.identity import Identity
from discretizations.preconditioners.kronecker_root import KroneckerRoot
from discretizations.preconditioners.masks import CoordinateMask, ExactSubspace, ThresholdMask, TrackedSubspace
from discretizations.preconditioners.polar_factor import PolarFactor
from discretizations.preconditioners.second_moment import SecondMoment
from discretizations.update_rule import UpdateRule
from lite import SOAPLITE, AdamWLITE, LITEOptimizer, MuonLITE, ShampooLITE
from lite.muon_settings import update_scale
from riemannian_ode import RISHD, GradientNoise, Preconditioner, TimeDependent, simulate

STEPS = 100
_SHAPE = (6, 4)
_ETA, _DECAY, _FRACTION = 0.02, 0.1, 0.3
_THETA, _BETA2, _FREQUENCY, _EPS = 0.9, 0.95, 7, 1e-3


@dataclass(frozen=True)
class Regression:
    """f(W) = ½‖AW − C‖²_F + Σ log cosh W of a flattened matrix W, a nonquadratic f with gradients of full rank."""

    left: Tensor
    target: Tensor

    def value(self, w: Tensor) -> Tensor:
        """f, one number."""
        x = w.reshape(_SHAPE)
        return 0.5 * ((self.left @ x - self.target) ** 2).sum() + torch.log(torch.cosh(w)).sum()

    def gradient(self, w: Tensor) -> Tensor:
        """∇f, flattened."""
        return (self.left.T @ (self.left @ w.reshape(_SHAPE) - self.target)).reshape(-1) + torch.tanh(w)


@dataclass(frozen=True, kw_only=True)
class Declared:
    """An optimizer: its update rule, its constructor in ``lite``, and the coefficients that follow a schedule.

    Args:
        rule: The update rule with the coefficients at the start of the schedule.
        build: Parameter ↦ optimizer of ``lite``.
        group: (χ, β_flat relative to F⁻¹m̃, η) ↦ settings of the optimizer's group that vary.
        scale: Factor of η in addition to the group's ``lr``.
        beta_unit: Ratio of β relative to F⁻¹m̃ to the optimizer's β, which may be in the theory's units.
        is_lite: Whether χ and β_flat follow schedules.
    """

    rule: UpdateRule
    build: Callable[[torch.nn.Parameter], torch.optim.Optimizer]
    group: Callable[[float, float, float], dict[str, float]]
    scale: float = 1.0
    beta_unit: float = 1.0
    is_lite: bool = False


class _FromRule(LITEOptimizer):
    """A torch optimizer built from an update rule, for optimizers without a class in ``lite``."""

    rule = "declared"

    def __init__(self, p: torch.nn.Parameter, rule: UpdateRule) -> None:
        self.declared = rule
        super().__init__([p], _ETA, weight_decay=0.0)

    def update_rule(self, group: dict[str, Any], shape: tuple[int, int]) -> UpdateRule:
        return self.declared


def schedule(t: float) -> tuple[float, float, float]:
    """χ, β_flat and η at step t: χ and β_flat rise, η falls."""
    return 1.5 + 0.01 * t, 0.5 + 0.005 * t, _ETA * (1.0 - 0.005 * t)


def optimizers() -> dict[str, Declared]:
    """The optimizers of claim C12, by name."""
    average: dict[str, Any] = {"alpha": 1.0 - _THETA, "gain": 1.0 - _THETA}
    lite: dict[str, Any] = {"chi": schedule(0)[0], "beta_flat": schedule(0)[1]}
    corrected = average | {"corrects_momentum": True}
    adam = SecondMoment(beta2=_BETA2)
    identity = Identity()
    declared: dict[str, UpdateRule] = {
        "SGD": UpdateRule(preconditioner=identity, alpha=1.0),
        "heavy ball": UpdateRule(preconditioner=identity, alpha=1.0 - _THETA),
        "Nesterov": UpdateRule(preconditioner=identity, alpha=1.0 - _THETA, nesterov=1.0 / _THETA),
        "RMSprop": UpdateRule(preconditioner=replace(adam, corrects_bias=False), alpha=1.0),
        "Adam": UpdateRule(preconditioner=adam, **corrected),
        "AdamW": UpdateRule(preconditioner=adam, **corrected, decay=_DECAY),
    }
    found = {
        name: Declared(
            rule=rule,
            build=lambda p, rule=rule: _FromRule(p, rule),  # type: ignore[misc]  # binds this rule
            group=lambda chi, beta_flat, eta: {"lr": eta},
        )
        for name, rule in declared.items()
    }
    for name, mask in {
        "Muon": None,
        "Muon-LITE, tracked subspace": TrackedSubspace(sharp_fraction=_FRACTION),
        "Muon-LITE, threshold": ThresholdMask(sharp_fraction=_FRACTION),
        "Muon-LITE, exact subspace": ExactSubspace(sharp_fraction=_FRACTION),
    }.items():
        found[name] = _muon(mask, average, lite)
    coordinates = CoordinateMask(sharp_fraction=_FRACTION)
    second_moment = SecondMoment(beta2=_BETA2, eps_first=True, mask=coordinates)
    found["AdamW-LITE"] = _corrected(AdamWLITE, second_moment, is_lite=True)
    for name, fraction in (("Shampoo", 0.0), ("Shampoo-LITE", _FRACTION)):
        roots = KroneckerRoot(beta2=_BETA2, eps=_EPS, sharp_fraction=fraction)
        settings: dict[str, Any] = {"precondition_frequency": 1, "grafts": False, "epsilon": _EPS}
        found[name] = _corrected(ShampooLITE, roots, is_lite=fraction > 0.0, **settings)
    for name in ("SOAP", "SOAP-LITE"):
        basis = EigenbasisMoment(beta2=_BETA2, frequency=_FREQUENCY, mask=coordinates)
        found[name] = _corrected(SOAPLITE, basis, is_lite=name == "SOAP-LITE", precondition_frequency=_FREQUENCY)
    return found


def _muon(
    mask: TrackedSubspace | ThresholdMask | ExactSubspace | None, average: dict[str, Any], lite: dict[str, Any]
) -> Declared:
    names = {TrackedSubspace: "subspace", ThresholdMask: "threshold", ExactSubspace: "exact"}
    settings: dict[str, Any] = {"momentum": _THETA, "weight_decay": _DECAY, "sharp_fraction": _FRACTION}
    if mask is None:
        settings |= {"chi": 1.0, "beta_sharp": 0.0, "beta_flat": 0.0}
    else:
        settings |= {"mask": names[type(mask)], "beta_sharp": -0.25}
    scale = update_scale(_SHAPE)
    polar = PolarFactor(mask=mask)
    if isinstance(mask, ThresholdMask):
        polar = replace(polar, floor=1e-8)  # as in the published code
    return Declared(
        rule=UpdateRule(
            preconditioner=polar,
            **average,
            nesterov=(1.0 - _THETA) / _THETA,
            **({} if mask is None else lite | {"beta_sharp": -0.25}),
            decay=_DECAY / scale,
        ),
        build=lambda p: MuonLITE([p], _ETA, **settings),
        group=lambda chi, beta_flat, eta: {"lr": eta} | ({} if mask is None else {"chi": chi, "beta_flat": beta_flat}),
        scale=scale,
        is_lite=mask is not None,
    )


def _corrected(
    optimizer: Callable[..., LITEOptimizer], preconditioner: Preconditioner, *, is_lite: bool, **settings: Any
) -> Declared:
    """An optimizer of ``lite`` with a bias-corrected average of gradients as momentum, and β in the theory's units."""
    settings |= {"betas": (_THETA, _BETA2), "weight_decay": _DECAY, "sharp_fraction": _FRACTION}
    gain = 1.0 - _THETA
    chi, beta_flat, _ = schedule(0)
    lite: dict[str, Any] = {"chi": chi, "beta_flat": gain * beta_flat} if is_lite else {}
    return Declared(
        rule=UpdateRule(
            preconditioner=preconditioner, alpha=gain, gain=gain, corrects_momentum=True, **lite, decay=_DECAY
        ),
        build=lambda p: optimizer([p], _ETA, chi=1.0, beta_flat=0.0, **settings),
        group=lambda chi, beta_flat, eta: {"lr": eta} | ({"chi": chi, "beta_flat": beta_flat} if is_lite else {}),
        beta_unit=gain,
        is_lite=is_lite,
    )


def gaps(declared: Declared, rng: np.random.Generator, *, noise: GradientNoise | None = None) -> np.ndarray:
    """Larger of the differences flow − update rule and update rule − ``lite`` after each of 100 steps.

    Args:
        declared: The optimizer.
        rng: Draws f and the start.
        noise: Noise of the flow; the other two get the same noisy gradients.
    """
    objective = Regression(
        torch.as_tensor(rng.normal(size=(_SHAPE[0], _SHAPE[0])) / _SHAPE[0] ** 0.5),
        torch.as_tensor(rng.normal(size=_SHAPE)),
    )
    start = torch.as_tensor(rng.normal(size=int(np.prod(_SHAPE))))

    def gradient(t: int, w: Tensor) -> Tensor:
        g = objective.gradient(w)  # a first gradient, which only sets a frame, has no noise
        return (g if noise is None or t < 0 else g + noise.at_step(t, w)).reshape(_SHAPE)

    rule_path = list(_by_rule(declared, gradient, start))
    flow = _flow_path(declared, objective, start, noise)
    torch_path = list(_by_lite(declared, gradient, start))
    by_rule, by_lite = torch.stack(rule_path), torch.stack(torch_path)
    worst: np.ndarray = torch.maximum((flow - by_rule).abs().amax(-1), (by_rule - by_lite).abs().amax(-1)).numpy()
    return worst


def _flow_path(declared: Declared, objective: Regression, start: Tensor, noise: GradientNoise | None) -> Tensor:
    rule = declared.rule
    lite: dict[str, Any] = {}
    if declared.is_lite:
        lite["chi"] = TimeDependent(lambda t: schedule(t)[0])
        lite["beta_flat"] = TimeDependent(lambda t: declared.beta_unit * schedule(t)[1])
    system = RISHD.from_optimizer(
        objective,
        rule.preconditioner,
        alpha=rule.alpha,
        gain=rule.gain,
        nesterov=rule.nesterov,
        eta=TimeDependent(lambda t: schedule(t)[2] * declared.scale),
        beta=rule.beta_sharp,
        decay=rule.decay,
        corrects_momentum=rule.corrects_momentum,
        shape=_SHAPE,
        **lite,
    )
    path: Tensor = simulate(system, start, steps=STEPS, noise=noise, progress=False).checked().w[1:]
    return path


def _by_rule(declared: Declared, gradient: Callable[[int, Tensor], Tensor], start: Tensor) -> Iterator[Tensor]:
    rule = declared.rule
    state = rule.start(start.reshape(_SHAPE))
    if rule.preconditioner.skips_first:
        state = rule.step(state, gradient(-1, start), eta=0.0)
    for t in range(STEPS):
        chi, beta_flat, eta = schedule(float(t))
        if declared.is_lite:
            rule = replace(rule, chi=chi, beta_flat=declared.beta_unit * beta_flat)
        state = rule.step(state, gradient(t, state.w.reshape(-1)), eta=eta * declared.scale)
        yield state.w.reshape(-1)


def _by_lite(declared: Declared, gradient: Callable[[int, Tensor], Tensor], start: Tensor) -> Iterator[Tensor]:
    p = torch.nn.Parameter(start.reshape(_SHAPE).clone())
    optimizer = declared.build(p)
    for t in range(-int(declared.rule.preconditioner.skips_first), STEPS):
        optimizer.param_groups[0].update(declared.group(*schedule(float(max(t, 0)))))
        p.grad = gradient(t, p.detach().reshape(-1))
        optimizer.step()
        if t >= 0:
            yield p.detach().reshape(-1).clone()
