r"""The three stages of a step: take in the gradient, compute the direction, move.

They are the optimizer's step with h = 1, and the flow's semi-implicit Euler step with any h. Flow, update rule and the
optimizers of ``lite`` call these functions, whatever the preconditioner.

Source: arXiv:2602.22681, Algorithm 1; docs/theory, "Flows with memory".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from riemannian_ode.flow import (
    Array,
    Projector,
    average_step,
    differ,
    lite_velocity,
    lookahead,
    momentum_step,
    position_step,
)
from riemannian_ode.preconditioner import Memory, Preconditioner, spread


class TakenIn(NamedTuple):
    """Momentum, memory and gradient after a step has taken in its gradient, in the frame.

    Args:
        m: Momentum.
        memory: k.
        g: Gradient, in the dtype of :meth:`Preconditioner.at_work`.
        covector: m̃ = m + νg, which the metric raises, same shape.
    """

    m: Array
    memory: Memory
    g: Array
    covector: Array


class Directed(NamedTuple):
    """The direction u with ẇ = −(η/c₁)u, and momentum and memory after the step.

    c₁ is the momentum's mass, 1 without bias correction.
    """

    u: Array
    m: Array
    memory: Memory


MASS: Literal["momentum_mass"] = "momentum_mass"  # key of c₁, the average of 1 with the momentum's rate: 1 − θᵗ


def initial_memory(preconditioner: Preconditioner, w: Array, *, corrects_momentum: bool, batch: int = 0) -> Memory:
    """Memory before the first gradient, with the momentum's mass 0 if its bias is corrected.

    Args:
        preconditioner: F⁻¹.
        w: Parameters, shape ``(*batch, *shape)``.
        corrects_momentum: Whether momentum is divided by its mass.
        batch: Number of batch axes.
    """
    memory = preconditioner.initial(w, batch=batch)
    return memory | {MASS: preconditioner.initial_mass(w, batch=batch)} if corrects_momentum else memory


def take_in(
    preconditioner: Preconditioner,
    m: Array,
    memory: Memory,
    g: Array,
    *,
    alpha: Any,
    gain: Any = 1.0,
    nesterov: Any = 0.0,
    h: Any = 1.0,
) -> TakenIn:
    r"""First stage of a step: memory and momentum take in the gradient.

    .. math:: k \leftarrow k + h(1-\theta)(s(g) - k), \quad m \leftarrow m + h(-\alpha m + c\,g), \quad
        \tilde m = m + \nu g

    Args:
        preconditioner: F⁻¹.
        m: Momentum, in the frame.
        memory: k. If it contains :data:`MASS`, the mass of the momentum's average is updated, too.
        g: Gradient.
        alpha: α, per unit time.
        gain: c.
        nesterov: ν.
        h: Step size, in units of time.

    Source: docs/theory, "Flows with memory".
    """
    frame_g = preconditioner.to_frame(memory, g)
    memory = preconditioner.observe(memory, g, frame_g, h=h)
    if MASS in memory:
        mass = memory[MASS]
        one = mass.new_ones(mass.shape) if hasattr(mass, "new_ones") else 1.0 + 0.0 * mass
        memory = memory | {MASS: average_step(mass, one, rate=per_member(alpha, mass), h=h)}
    m = momentum_step(m, frame_g, alpha=alpha, gain=gain, h=h)
    covector = preconditioner.at_work(lookahead(m, frame_g, nesterov))
    return TakenIn(m, memory, preconditioner.at_work(frame_g), covector)


def direct(
    preconditioner: Preconditioner,
    taken: TakenIn,
    *,
    chi: Any = 1.0,
    chi_sharp: Any = 1.0,
    beta_sharp: Any = 0.0,
    beta_flat: Any = 0.0,
    damps_inside: bool = False,
    is_split: bool = True,
    shrinkage: Any = None,
    velocity: Callable[..., Array] = lite_velocity,
    step: int = 0,
    numbers: Sequence[int] = (0,),
    is_phase: bool = False,
    is_rate: bool = False,
    keeps_flat: str | None = None,
    h: Any = 1.0,
) -> Directed:
    r"""Second stage of a step: LITE's direction, and the memory after it.

    It is :func:`riemannian_ode.flow.lite_velocity` of :math:`a = F^{-1}\tilde m`, :math:`d = F^{-1}g` and the decay
    :math:`\lambda w`. A linear F⁻¹ that commutes with Q is applied only once, to the combined covectors.

    Args:
        preconditioner: F⁻¹.
        taken: Result of :func:`take_in`.
        chi: χ.
        chi_sharp: χ_s.
        beta_sharp: β₁, relative to F⁻¹m̃.
        beta_flat: β₂.
        damps_inside: Whether β acts before a nonlinear map, with β in units of the covector:
            :math:`a = F^{-1}(\tilde m + \beta_1Pg + \beta_2Qg)`. For a linear map it makes no difference.
        is_split: Whether sharp and flat directions are treated differently.
        shrinkage: Decoupled decay, as :func:`shrinkage` returns it; ``None`` for no decay.
        velocity: :func:`riemannian_ode.flow.lite_velocity`, or a faster function with the same arguments.
        step: Gradients taken in, including this one.
        numbers: See :meth:`Preconditioner.due`.
        is_phase: See :meth:`Preconditioner.jump`.
        is_rate: Whether the direction is a rate of the flow, as opposed to an optimizer's step.
        keeps_flat: Key under which the memory gets the flat part of u; ``None`` skips it.
        h: Step size, in units of time.

    Source: arXiv:2602.22681, Algorithm 1.
    """
    m, memory, g, covector = taken
    d = g if differ(beta_sharp, 0.0) or differ(beta_flat, 0.0) else None
    rates = {"chi": chi, "chi_sharp": chi_sharp}
    betas = {"beta_sharp": beta_sharp, "beta_flat": beta_flat}
    due = preconditioner.due(step, numbers)
    flat: Projector | None = None
    kept: Array | None = None
    if preconditioner.has_frame or (preconditioner.is_linear and d is not None):
        if is_split:
            flat, memory = preconditioner.flat(memory, covector, None, h=h)
        u = preconditioner.raise_index(memory, velocity(covector, d, flat=flat, **rates, **betas))
        if preconditioner.has_frame:
            if shrinkage is not None and flat is not None and differ(chi, chi_sharp):
                extra = (chi - chi_sharp) * shrinkage
                u = preconditioner.with_flat_decay(
                    u, flat, memory, extra, due=None if is_rate or differ(h, 1.0) else due
                )
            if keeps_flat is not None and flat is not None:
                kept = preconditioner.from_frame(memory, flat(u))
            u = preconditioner.from_frame(memory, u)
            u = u if shrinkage is None else u + chi_sharp * shrinkage
        elif shrinkage is not None:
            u = u + velocity(shrinkage, flat=flat, **rates)
    else:
        inner = betas if damps_inside and d is not None else None
        a, d, flat, memory = _raised(
            preconditioner, memory, covector, d, inner, velocity, is_split=is_split, h=h, learned=0.0 if is_rate else h
        )
        decay = shrinkage if preconditioner.masks_decay else None
        u = velocity(a, d, flat=flat, decay=decay, twice=preconditioner.applies_twice, **rates, **betas)
        if shrinkage is not None and decay is None:
            u = u + chi_sharp * shrinkage
    if keeps_flat is not None and flat is not None:
        memory = memory | {keeps_flat: kept if preconditioner.has_frame else flat(u)}
    if not is_split:
        memory = preconditioner.watch(memory, covector)
    if due:  # only now, so that no gradient influences the frame in which it is used
        memory, m = preconditioner.jump(memory, m, step, due=due, is_phase=is_phase)
    return Directed(u, m, memory)


def _raised(
    preconditioner: Preconditioner,
    memory: Memory,
    covector: Array,
    g: Array | None,
    inner: dict[str, Any] | None,
    velocity: Callable[..., Array],
    *,
    is_split: bool,
    h: Any,
    learned: Any,
) -> tuple[Array, Array | None, Projector | None, Memory]:
    """a, d, Q and the memory for a nonlinear map; ``inner`` holds the β that act before the map, if any."""
    flat: Projector | None = None
    if inner is not None:
        if is_split:
            flat, memory = preconditioner.flat(memory, covector, covector, h=h)
        damped = velocity(covector, g, flat=flat, **inner)
        a, _, memory = preconditioner.raise_step(memory, damped, None, h=learned)
        return a, None, flat, memory
    a, d, memory = preconditioner.raise_step(memory, covector, g, h=learned)
    if is_split:
        flat, memory = preconditioner.flat(memory, covector, a, h=h)
    return a, d, flat, memory


def move(w: Array, directed: Directed, *, eta: Any, h: Any = 1.0) -> Array:
    r"""Third stage of a step: :math:`w \leftarrow w - h(\eta/c_1)u`.

    Args:
        w: Parameters, shape ``(*batch, *shape)``.
        directed: Result of :func:`direct`.
        eta: η.
        h: Step size, in units of time.

    Source: arXiv:2602.22681, Algorithm 1.
    """
    if MASS in directed.memory:
        eta = eta / spread(directed.memory[MASS], directed.u)
    return position_step(w, directed.u, eta=eta, h=h)


def shrinkage(taken: TakenIn, w: Array, decay: Any) -> Array | None:
    """Decoupled decay λw in the units of u, i.e. times c₁, by which :func:`move` divides; ``None`` if λ = 0.

    Args:
        taken: Result of :func:`take_in`.
        w: Parameters.
        decay: λ.
    """
    if not differ(decay, 0.0):
        return None
    if w.dtype != taken.covector.dtype and hasattr(w, "to"):
        w = w.to(taken.covector.dtype)
    decayed: Array = _decay_beside(taken.memory, w, decay) * w
    return decayed


def with_cautious_decay(directed: Directed, w: Array, decay: Any) -> Directed:
    """A direction with decoupled decay λw in the coordinates where u and w have the same sign.

    Args:
        directed: Result of :func:`direct` without decay.
        w: Parameters.
        decay: λ.

    Source: Chen et al., *Cautious Weight Decay*, arXiv:2510.12402.
    """
    u = directed.u
    w = w.to(u.dtype) if hasattr(w, "to") else w
    rate = _decay_beside(directed.memory, w, decay)
    return directed._replace(u=u + (u * w > 0.0) * (rate * w))


def _decay_beside(memory: Memory, w: Array, decay: Any) -> Any:
    """Decay λ in the units of u, which :func:`move` divides by c₁."""
    return decay * spread(memory[MASS], w) if MASS in memory else decay


def direction_on_sphere(w: Array, u: Array, *, eta: Any) -> Array:
    r"""The direction d with which w − ηd lies on the sphere of w, in the direction of :math:`w - \eta R\hat u`.

    .. math:: w - \eta d = R\,\frac{w - \eta R\hat u}{\|w - \eta R\hat u\|}, \qquad R = \|w\|, \quad \hat u = u/\|u\|

    With :math:`c = \langle w, \hat u\rangle/R` and :math:`s = (1 - 2\eta c + \eta^2)^{-1/2}` it is
    :math:`d = sR\hat u + \frac{(\eta - 2c)\,s}{1 + 1/s}\,w`, which needs no division by η. As η → 0 it tends to the
    projection of :math:`R\hat u` onto the tangent space, :math:`R\hat u - cw`: the flow that the step discretises.

    Args:
        w: Parameters; the last two axes form a matrix, which must not be zero.
        u: Direction; if it is 0, so is d.
        eta: η, an angle: the step has length ηR before it returns to the sphere.

    Source: Wen et al., *Hyperball*, arXiv:2606.16899.
    """
    w = w.to(u.dtype) if hasattr(w, "to") else w

    def total(x: Array) -> Array:
        return x.sum(axis=(-2, -1), keepdims=True)

    radius, length = total(w * w) ** 0.5, total(u * u) ** 0.5
    divisor = length + (length == 0.0)
    direction, moves = u / divisor, length / divisor  # ‖û‖: 1, or 0 where u = 0 and w stays
    cosine = total(w * direction) / (radius + (radius == 0.0))
    size = (1.0 - 2.0 * eta * cosine + eta * eta * moves) ** 0.5  # 1/s
    return (radius / size) * direction + ((eta * moves - 2.0 * cosine) / (size * (1.0 + size))) * w


def per_member(coefficient: Any, number: Array) -> Any:
    """Reshape a coefficient that broadcasts against parameters to broadcast against one number per batch member."""
    is_plain = isinstance(coefficient, (int, float)) or coefficient.ndim == 0
    return coefficient if is_plain else coefficient.reshape(number.shape)
