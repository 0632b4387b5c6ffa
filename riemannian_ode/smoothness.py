"""Detect a jump of the right-hand side as the reason why a scheme gave up, as opposed to stiffness."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from riemannian_ode.arrays import like, to_numpy
from riemannian_ode.dynamics import RISHD
from riemannian_ode.integrators import PhaseState

_LOOKS = 64  # explicit steps used to search the way ahead
_HALVINGS = 40  # halvings of the piece with the largest change: down to 1e−12 of it
_SHARE = 0.1  # fraction of the change that remains in the smallest piece if there is a jump


@np.errstate(all="ignore")
def describe_jump(system: RISHD, t: float, state: PhaseState, h: float, member: tuple[int, ...] = ()) -> str:
    """Describe what jumps on the way ahead of a state; empty if nothing does.

    The way ahead consists of explicit Euler steps. The piece on which the right-hand side changes most is halved
    repeatedly: for a smooth function the change shrinks with the piece, at a jump it does not.

    Args:
        system: The dynamics.
        t: Time at which coefficients are frozen.
        state: State at which the scheme gave up.
        h: Length of the step it tried.
        member: The ensemble member in question; the others stay fixed. By default all members move.
    """
    start = np.stack([to_numpy(x)[member] for x in state]).astype(np.float64)
    if not np.isfinite(start).all():
        return ""

    def placed(point: np.ndarray) -> PhaseState:
        if not member:
            return PhaseState(*(like(half, state.w) for half in point))
        whole = []
        for part, half in zip(state, point, strict=True):
            array = np.array(to_numpy(part))
            array[member] = half
            whole.append(like(array, state.w))
        return PhaseState(*whole)

    def rates(point: np.ndarray) -> np.ndarray:
        return np.stack([to_numpy(x)[member] for x in system.rates(t, *placed(point))])

    def gradient(point: np.ndarray) -> np.ndarray:
        return np.asarray(to_numpy(system.objective.gradient(placed(point).w))[member])

    points = [start]
    slopes = [rates(points[0])]
    for _ in range(_LOOKS):
        points.append(points[-1] + h / _LOOKS * slopes[-1])
        slopes.append(rates(points[-1]))
    changes = np.array([np.abs(b - a).max() for a, b in pairwise(slopes)])
    if not np.isfinite(changes).all() or changes.max() == 0.0:
        return ""
    i = int(changes.argmax())
    (a, b), (rate_a, rate_b), first = points[i : i + 2], slopes[i : i + 2], float(changes[i])
    for _ in range(_HALVINGS):
        middle = 0.5 * (a + b)
        rate = rates(middle)
        if np.abs(rate - rate_a).max() >= np.abs(rate_b - rate).max():
            b, rate_b = middle, rate
        else:
            a, rate_a = middle, rate
    if not np.abs(rate_b - rate_a).max() > _SHARE * first:
        return ""
    step, coarse = np.abs(gradient(b) - gradient(a)), np.abs(gradient(points[i + 1]) - gradient(points[i]))
    of_gradient = step.max() > _SHARE * coarse.max()
    worst = step if of_gradient else np.abs(rate_b - rate_a).max(0)
    *inside, coordinate = (int(i) for i in np.unravel_index(int(worst.argmax()), worst.shape))
    member = (*member, *inside)
    who = f" of member {member}" if member else ""
    where = np.array2string(b[(0, *inside)][:4], precision=4, separator=", ")
    if of_gradient:
        what = f"the gradient{who} jumps by {step.max():.3g} in coordinate {coordinate}"
    else:
        what = f"the metric or the split{who} jumps"
    return (
        f"{what} near w = {where}: it is not smooth there, and no step size or stiff scheme helps; smooth it (e.g. "
        "√(w² + ε²) for |w|), or take a scheme of fixed steps such as 'semi-implicit-euler'"
    )
