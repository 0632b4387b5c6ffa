"""Claim C11b: the offset of a curved valley's river from its floor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from discretizations.proofs import rivers
from rishd.claims.claim import register_claim
from rishd.claims.evidence import Curve, Evidence, Hypothesis, Identity, Panel, Proof
from rishd.claims.trial import Box, Parameters, Range, draw
from toy_landscapes import RiverValley

_NEWTON = 60  # most iterations; a start from the expansion needs five
_GRAPH_BOX: Box = {
    "wall": Range(30.0, 3000.0, log=True),
    "floor": Range(0.02, 0.3, log=True),
    "width": Range(0.5, 5.0, log=True),
    "amplitude": Range(-1.0, 1.0),
    "frequency": Range(0.2, 1.2),
    "phase": Range(-3.2, 3.2),
    "u": Range(-3.0, 3.0),
}
_WALLS = 2
_HIGHER_BOX: Box = {
    **_GRAPH_BOX,
    "wall": Range(1e4, 1e5, _WALLS, log=True),
    "floor": Range(0.02, 0.3, 2, log=True),
    "amplitude": Range(-1.0, 1.0, _WALLS),
    "phase": Range(-3.2, 3.2, _WALLS),
    "u": Range(-3.0, 3.0, 2),
}
_CIRCLE_BOX: Box = {
    "radius": Range(1.0, 5.0),
    "floor": Range(0.02, 0.3, log=True),
    "ripple": Range(-0.05, 0.05),
    "u": Range(-2.0, 2.0),
}
_SCALE = 1e4  # λ at which the order of the remainder is measured
_CIRCLE_WALL = 1e3  # λ of circular valleys; for larger λ, n = O(λ⁻²) drowns in the rounding of ‖w‖


@register_claim("C11b", "a curved river is not its floor", seconds=8)
def river_offset(rng: np.random.Generator, instances: int) -> Sequence[Evidence | Panel]:
    r"""The river of a curved valley differs from its floor.

    Statement: for :math:`f = h(u) + \frac{1}{2}(s - c(u))^\top\Lambda(s - c(u))` with
    :math:`C' = \partial c/\partial u` the river lies at

    .. math:: s - c(u) = \Lambda^{-1}(I + C'C'^\top)^{-1}C'\nabla h + O(\lambda^{-2}),

    in the plane :math:`\frac{c'h'}{\lambda(1 + c'^2)}` to first order, with the next order in closed form. In normal
    coordinates of a plane curve of curvature :math:`k`, :math:`f = h(u) + \frac{1}{2}\lambda n^2`, it lies at

    .. math:: n = -\frac{k\,h'^2}{\lambda^2} + O(\lambda^{-3}) .

    Hypotheses: :math:`h` and :math:`c` twice continuously differentiable, walls steep compared with floor and bends;
    :math:`h' \ne 0` for the exact condition.

    Proof: docs/theory, claim C11; symbolic: the plane's condition and both its expansions, gradient and Hessian in
    normal coordinates from their definitions, and the first order with two walls and two floor directions.

    Check: RiverValley.river, which solves P∇f = 0, against the root of the plane's exact condition; the order of the
    expansion's remainder; rivers between two walls and along two floor directions; circular valleys, whose river is
    solved from gradient and Hessian by autograd.

    Finding: the first-order offset is a property of the graph coordinates, not of the river.

    Source: derived in docs/theory; the river is that of arXiv:2410.05192.
    """
    return [
        Proof(
            "graph coordinates: exact condition, two orders, first order in 2 + 2 dimensions",
            rivers.graph_offset(),
        ),
        Proof("normal coordinates: gradient, Hessian, two orders", rivers.normal_offset()),
        *_plane(draw(_GRAPH_BOX, rng, instances)),
        _higher(draw(_HIGHER_BOX, rng, instances)),
        _circle(draw(_CIRCLE_BOX, rng, instances)),
        _panel(),
    ]


def _plane(parameters: Parameters) -> list[Evidence]:
    solved = np.array([_solved(parameters, k)[0] for k in range(len(parameters["u"]))])
    slopes = _slopes(parameters)
    x = _condition_root(*slopes, 1.0 / parameters["wall"])
    offset = x / parameters["wall"]
    size = np.abs(parameters["amplitude"]) + 1.0 / parameters["wall"]
    falls = Hypothesis("h′ ≠ 0", np.abs(slopes[0]) > 1e-6)
    return [
        Identity(
            "solved river of the plane against the root of its exact condition",
            np.abs(solved - offset) / size,
            1e-11,
            "the solver's tolerance, 1e−10 in the gradient",
            (falls,),
        ),
        Identity(
            "order in 1/λ of the remainder after two orders of λ(s − c), minus 2",
            _remainder_order(*slopes),
            0.05,
            "next order at λ = 1e4",
            (falls,),
        ),
    ]


def _higher(parameters: Parameters) -> Identity:
    """Both walls' offsets over their first order; c′ = (c_1′, c_2′)ᵀ belongs to u_1 only."""
    solved = np.array([_solved(parameters, k) for k in range(len(parameters["u"]))])
    slope = parameters["floor"][:, 0] * _bent(parameters["u"][:, 0], parameters["width"])
    c1 = _meander_slope(parameters, parameters["u"][:, :1])
    stated = c1 * slope[:, None] / (1.0 + (c1**2).sum(-1, keepdims=True))
    error = np.linalg.norm(solved * parameters["wall"] - stated, axis=-1)
    scale = np.abs(slope) * np.linalg.norm(c1, axis=-1) + 1e-3 * np.abs(parameters["amplitude"]).max(-1)
    return Identity(
        "λ(s − c) over its first order, two walls and two floor directions, minus 1", error / scale, 1e-3, "O(1/λ)"
    )


def _solved(parameters: Parameters, k: int) -> np.ndarray:
    """Offset of the solved river from the floor, shape ``(walls,)``."""
    one = {name: value[k] for name, value in parameters.items()}
    valley = RiverValley(
        np.atleast_1d(one["wall"]),
        floor_curvatures=np.atleast_1d(one["floor"]),
        floor_width=float(one["width"]),
        amplitudes=np.atleast_1d(one["amplitude"]),
        frequency=float(one["frequency"]),
        phases=np.atleast_1d(one["phase"]),
    )
    u = np.atleast_1d(one["u"])
    return np.asarray((valley.river(u) - valley.valley_floor(u))[len(u) :])


def _bent(u: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Slope of the floor profile over its curvature at the end."""
    return np.asarray(u / np.sqrt(1.0 + (u / width) ** 2))


def _meander_slope(parameters: Parameters, u: np.ndarray) -> np.ndarray:
    """c′, shape of ``amplitude``."""
    frequency = parameters["frequency"].reshape(-1, *([1] * (u.ndim - 1)))
    return np.asarray(parameters["amplitude"] * frequency * np.cos(frequency * u + parameters["phase"]))


def _slopes(parameters: Parameters) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """h′, h″, c′ and c″ of the plane valleys."""
    u, width, frequency = (parameters[name] for name in ("u", "width", "frequency"))
    h1 = parameters["floor"] * _bent(u, width)
    h2 = parameters["floor"] / (1.0 + (u / width) ** 2) ** 1.5
    c1 = _meander_slope(parameters, u)
    c2 = -parameters["amplitude"] * frequency**2 * np.sin(frequency * u + parameters["phase"])
    return h1, h2, c1, c2


def _condition_root(h1: np.ndarray, h2: np.ndarray, c1: np.ndarray, c2: np.ndarray, eps: Any) -> np.ndarray:
    """x = λ(s − c) of the river, the root near x₀ of (1 + c′²)x − c′h′ = (ε/h′)(h″ − xc″)(h′ − xc′)x, by Newton."""
    safe = np.where(h1 == 0, 1.0, h1)
    x = c1 * h1 / (1.0 + c1**2)
    for _ in range(_NEWTON):
        bend, fall = h2 - x * c2, h1 - x * c1
        value = (1.0 + c1**2) * x - c1 * h1 - eps / safe * bend * fall * x
        slope = 1.0 + c1**2 - eps / safe * (bend * fall - c2 * fall * x - c1 * bend * x)
        x = x - value / slope
    return np.asarray(x)


def _remainder_order(h1: np.ndarray, h2: np.ndarray, c1: np.ndarray, c2: np.ndarray) -> np.ndarray:
    """|p − 2| of x − x₀ − εx₁ ∝ εᵖ between λ = 1e4 and 4e4, and 0 if there is no remainder."""
    x0 = c1 * h1 / (1.0 + c1**2)
    x1 = x0 * (h2 - x0 * c2) / (1.0 + c1**2) ** 2
    left = [np.abs(_condition_root(h1, h2, c1, c2, eps) - x0 - eps * x1) for eps in (1.0 / _SCALE, 0.25 / _SCALE)]
    rounding = 1e-12 * np.abs(x0) + 1e-300
    order = np.log(np.maximum(left[0], rounding) / np.maximum(left[1], rounding)) / np.log(4.0)
    return np.asarray(np.where(left[1] <= rounding, 0.0, np.abs(order - 2.0)))


def _circle(parameters: Parameters) -> Identity:
    """Offset −λ²n/(kh′²) of the river of a circular valley, minus 1."""
    radius, u, floor, ripple = (torch.as_tensor(parameters[name]) for name in ("radius", "u", "floor", "ripple"))
    slope = floor * u + ripple * torch.cos(u)
    wall = _CIRCLE_WALL * torch.ones_like(u)
    n = _circular_river(radius, u, floor, ripple, wall)
    stated = -(slope**2) / radius / wall**2  # the normal points inward, the curvature is 1/r
    error = (n - stated).abs() / (stated.abs() + 1e-2 * (floor**2 / radius / wall**2))
    return Identity("λ²n over −kh′² of circular valleys, minus 1", error.numpy(), 2e-3, "O(1/λ) at λ = 1e3")


def _circular_river(radius: Tensor, u: Tensor, floor: Tensor, ripple: Tensor, wall: Tensor) -> Tensor:
    """Normal offset n at arc length u where the gradient has no sharp part; derivatives by autograd in the plane."""
    from torch.func import grad, hessian, vmap

    def f(w: Tensor, r: Tensor, angle: Tensor, k: Tensor, e: Tensor, lam: Tensor) -> Tensor:
        # The branch of the angle is kept close to that of the point.
        turned = torch.atan2(
            torch.cos(angle) * w[1] - torch.sin(angle) * w[0], torch.cos(angle) * w[0] + torch.sin(angle) * w[1]
        )
        along = r * (angle + turned)
        height: Tensor = 0.5 * k * along**2 + e * torch.sin(along) + 0.5 * lam * (r - w.norm()) ** 2
        return height

    angle = u / radius
    ray = torch.stack([torch.cos(angle), torch.sin(angle)], dim=-1)

    def sharp_gradient(n: Tensor) -> Tensor:
        w = (radius - n)[:, None] * ray
        arguments = (w, radius, angle, floor, ripple, wall)
        g, h = vmap(grad(f))(*arguments), vmap(hessian(f))(*arguments)
        sharp = torch.linalg.eigh(h)[1][..., -1]
        inward: Tensor = -(sharp * g).sum(-1) * (sharp * ray).sum(-1).sign()
        return inward

    n = torch.zeros_like(u)
    for _ in range(8):  # the sharp gradient is λn + O(1/λ): every step gains a factor of about λ
        n = n - sharp_gradient(n) / wall
    return n


def _panel() -> Panel:
    """Plot of the offsets of one graph valley and one circular valley over λ."""
    wall = np.geomspace(10.0, 1e4, 25)
    one = {"floor": 0.2, "width": 2.0, "amplitude": 0.8, "frequency": 0.7, "phase": 0.3, "u": -1.5}
    parameters = {name: np.full(len(wall), value) for name, value in one.items()} | {"wall": wall}
    h1, _, c1, _ = _slopes(parameters)
    solved = np.array([_solved(parameters, k)[0] for k in range(len(wall))])
    radius, place, floor, ripple = (torch.full(wall.shape, x, dtype=torch.float64) for x in (1.5, -1.5, 0.2, 0.0))
    n = _circular_river(radius, place, floor, ripple, torch.as_tensor(wall)).numpy()
    curves = (
        Curve("graph coordinates, solved", wall, np.abs(solved), "points"),
        Curve("c′h′/(λ(1 + c′²))", wall, np.abs(c1 * h1 / (1.0 + c1**2) / wall)),
        Curve("normal coordinates, solved", wall, np.abs(n), "points"),
        Curve("kh′²/λ²", wall, (0.2 * 1.5) ** 2 / 1.5 / wall**2),
    )
    return Panel("The river beside the floor", "curvature λ of the wall", "distance", curves, log="xy")
