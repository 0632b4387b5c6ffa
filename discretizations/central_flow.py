r"""The central flow of the update rule: the averaged path of full-batch training at the edge of stability (claim C21).

With a constant metric and split the update rule loses stability with period 2 where :math:`D\nabla^2f` has an
eigenvalue :math:`2/\eta`, :math:`D = A(B + \frac1{2-\alpha})`. At that edge the iterates are
:math:`\bar w + (-1)^kx`, and the average moves by, with :math:`C = A(B + \frac1\alpha)`,

.. math::
    \dot{\bar w} = -\eta C\bigl[\nabla f(\bar w) + \tfrac12\nabla^3f(\bar w):\Sigma\bigr] .

The covariance :math:`\Sigma = UXU^\top` of the oscillation lives on the critical directions U and is what keeps their
curvatures at :math:`2/\eta`: with slack :math:`Y = \frac2\eta - U^\top\nabla^2fU`,

.. math:: X \succeq 0, \qquad Y \succeq 0, \qquad \langle X, Y\rangle = 0 .

Source: for gradient descent Cohen, Damian, Talwalkar, Kolter and Lee, arXiv:2410.24206; for the update rule derived in
docs/theory, claim C21.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import eigh

from discretizations.constant_rule import ConstantRule
from riemannian_ode.arrays import as_float_array
from riemannian_ode.checks import require_count, require_method, require_positive

_NEAR = 0.25  # modes with ηS this close to 2 may become critical within a step
_SPACING = 1e-4  # step of the difference for third derivatives, relative to the norm of a direction
_RANK = 1e-6  # relative to the largest eigenvalue of X; smaller ones do not count
_ITERATIONS, _TOLERANCE = 5000, 1e-12  # of the complementarity problem's solver


class Mode(NamedTuple):
    """The sharpest directions of D∇²f.

    Args:
        sharpness: ηS, descending, shape ``(k,)``; the edge is at 2.
        directions: U with UᵀD⁻¹U = I, shape ``(p, k)``.
    """

    sharpness: np.ndarray
    directions: np.ndarray


@dataclass(frozen=True)
class CentralPath:
    """A path of the central flow.

    Args:
        times: Times in steps of the update rule, shape ``(saves,)``.
        w: Averaged iterate, shape ``(saves, p)``.
        sharpness: ηS of the sharpest direction, shape ``(saves,)``; the edge is at 2.
        variance: tr X in the step before each time, the oscillation's variance in the norm of D⁻¹, shape ``(saves,)``.
        critical: Rank of X in that step, shape ``(saves,)``.
    """

    times: np.ndarray
    w: np.ndarray
    sharpness: np.ndarray
    variance: np.ndarray
    critical: np.ndarray

    @property
    def status(self) -> str:
        """Description of whether and how the oscillation took part."""
        if not self.critical.any():
            return "plain gradient flow: no direction became critical"
        first = self.times[int(np.argmax(self.critical > 0))]
        most = int(self.critical.max())
        return f"critical from t = {first:g} on, in {f'at most {most} directions' if most > 1 else 'one direction'}"


class CentralFlow:
    """The central flow of an update rule on an objective.

    Args:
        objective: A landscape: ``gradient``, ``hvp`` and ``hessian``, of numpy arrays with leading axes.
        rule: η, α, A and B.
        critical: Largest number of critical directions.
        oscillates: False leaves out the oscillation, which gives plain gradient flow with the metric C⁻¹.

    Raises:
        ValueError: for arguments of the wrong kind, an ensemble of rules, and negative Hessian damping below −α/(2 −
            α)², for which a mode does not lose its stability with period 2 (claim C6).
    """

    def __init__(self, objective: Any, rule: ConstantRule, *, critical: int = 3, oscillates: bool = True) -> None:
        for name, form in (("gradient", "w ↦ ∇f(w)"), ("hvp", "(w, v) ↦ ∇²f(w)v"), ("hessian", "w ↦ ∇²f(w)")):
            require_method(f"objective.{name}", getattr(objective, name, None), form)
        require_count("critical", critical, remedy="oscillates=False leaves the oscillation out")
        if not isinstance(rule, ConstantRule):
            raise ValueError(f"rule is of type {type(rule).__name__}; give a ConstantRule, e.g. by split_rule.")
        if rule.inverse_metric.ndim != 2 or np.ndim(rule.eta) or np.ndim(rule.alpha):
            raise ValueError("rule is an ensemble; build one ConstantRule, with matrices of shape (p, p), per flow.")
        least, limit = float(np.linalg.eigvalsh(rule.damping)[0]), -rule.alpha / (2.0 - rule.alpha) ** 2
        if least < limit:
            raise ValueError(
                f"damping has the eigenvalue {least:g}, below −α/(2 − α)² = {limit:g}: such a mode does not lose "
                "stability with period 2, and there is no central flow. Raise it, or simulate the update rule."
            )
        self.objective, self.rule, self.critical, self.oscillates = objective, rule, critical, oscillates
        values, vectors = np.linalg.eigh(rule.clock)
        self._root = (vectors * np.sqrt(values)) @ vectors.T
        self._edge_inverse = np.linalg.inv(rule.edge_metric)

    def modes(self, hessian: np.ndarray) -> Mode:
        """The sharpest directions.

        Args:
            hessian: ∇²f, shape ``(p, p)``.
        """
        p = len(hessian)
        count = min(self.critical, p)
        values, vectors = eigh(hessian, self._edge_inverse, subset_by_index=[p - count, p - 1])
        return Mode(self.rule.eta * values[::-1], vectors[:, ::-1])

    def simulate(self, w0: np.ndarray, *, h: float, steps: int) -> CentralPath:
        """Simulate the path with linearly implicit Euler steps, each followed by the complementarity problem.

        Args:
            w0: Start, shape ``(p,)``.
            h: Step size, in steps of the update rule.
            steps: Number of steps.

        Raises:
            ValueError: for h ≤ 0, fewer than one step, or a start that is not finite or of another shape.
        """
        require_positive("h", h)
        require_count("steps", steps)
        w = as_float_array("w0", w0)
        if w.shape != self._root[0].shape:
            raise ValueError(f"w0 has shape {w.shape}; the rule's matrices need shape {self._root[0].shape}.")
        path, sharpness, variance, critical = [w], np.empty(steps + 1), np.zeros(steps + 1), np.zeros(steps + 1, int)
        for k in range(steps):
            hessian = self.objective.hessian(w)
            modes = self.modes(hessian)
            w, covariance = self._step(w, hessian, modes, h)
            eigenvalues = np.linalg.eigvalsh(covariance)
            path.append(w)
            sharpness[k], variance[k + 1] = modes.sharpness[0], eigenvalues.sum()
            critical[k + 1] = int((eigenvalues > _RANK * max(float(eigenvalues[-1]), 1e-300)).sum())
        sharpness[steps] = self.modes(self.objective.hessian(w)).sharpness[0]
        return CentralPath(h * np.arange(steps + 1), np.array(path), sharpness, variance, critical)

    def _step(self, w: np.ndarray, hessian: np.ndarray, modes: Mode, h: float) -> tuple[np.ndarray, np.ndarray]:
        """The next w, and X of the near-critical modes."""
        rate = h * self.rule.eta
        # (1 + hηC∇²f₊)⁻¹C: sharp directions relax within one step for any h.
        values, vectors = np.linalg.eigh(self._root @ hessian @ self._root)
        wide = self._root @ vectors
        mobility = (wide / (1.0 + rate * np.maximum(values, 0.0))) @ wide.T
        g = self.objective.gradient(w)
        count = int((modes.sharpness > 2.0 - _NEAR).sum()) if self.oscillates else 0
        if count == 0:
            return w - rate * mobility @ g, np.zeros((1, 1))
        third = self._third(w, modes.directions[:, :count])
        gap = np.diag(2.0 - modes.sharpness[:count]) / self.rule.eta
        drift = gap + rate * np.einsum("ijp,p->ij", third, mobility @ g)
        flat = third.reshape(count**2, -1)
        covariance = complementary(0.5 * rate * flat @ mobility @ flat.T, drift)
        return w - rate * mobility @ (g + 0.5 * np.einsum("ij,ijp->p", covariance, third)), covariance

    def _third(self, w: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """∇³f(uᵢ, uⱼ, ·) by central differences of Hessian–vector products, shape ``(k, k, p)``."""
        k = directions.shape[1]
        lengths = np.linalg.norm(directions, axis=0)
        space = _SPACING / lengths
        points = np.stack([w + sign * s * u for sign in (1.0, -1.0) for s, u in zip(space, directions.T, strict=True)])
        products = np.stack([self.objective.hvp(points, np.broadcast_to(u, points.shape)) for u in directions.T])
        third = (products[:, :k] - products[:, k:]) / (2.0 * space[None, :, None])
        return np.asarray(0.5 * (third + np.swapaxes(third, 0, 1)))


def complementary(matrix: np.ndarray, offset: np.ndarray) -> np.ndarray:
    r"""X with :math:`X \succeq 0`, :math:`Y = MX + b \succeq 0`, :math:`\langle X, Y\rangle = 0`.

    It is the minimiser of :math:`\frac12\langle X, MX\rangle + \langle b, X\rangle` over X ⪰ 0, found by accelerated
    projected gradients with restarts. For one direction it is :math:`\max(0, -b/M)`.

    Args:
        matrix: M, positive semidefinite, acts on X row by row, shape ``(k², k²)``.
        offset: b, symmetric, shape ``(k, k)``.

    Returns:
        X, shape ``(k, k)``.

    Source: Nesterov's method with the restart of O'Donoghue and Candès, arXiv:1204.3982.
    """
    k = len(offset)
    stiffness = float(np.linalg.eigvalsh(matrix)[-1])
    if stiffness <= 0:
        return np.zeros((k, k))
    if k == 1:
        return np.asarray(np.maximum(-offset / matrix, 0.0))
    x = ahead = np.zeros((k, k))
    weight = 1.0
    for _ in range(_ITERATIONS):
        slope = (matrix @ ahead.ravel()).reshape(k, k) + offset
        values, vectors = np.linalg.eigh(ahead - 0.5 * (slope + slope.T) / stiffness)
        new = (vectors * np.maximum(values, 0.0)) @ vectors.T
        change = new - x
        if np.abs(new - ahead).max() <= _TOLERANCE * np.abs(new).max(initial=0.0):
            return np.asarray(new)
        if (slope * change).sum() > 0:
            ahead, weight = new, 1.0
        else:
            grown = 0.5 * (1.0 + np.sqrt(1.0 + 4.0 * weight**2))
            ahead, weight = new + (weight - 1.0) / grown * change, grown
        x = new
    return np.asarray(x)
