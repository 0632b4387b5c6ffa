"""Checks of user-supplied functions, made once at the start of a simulation.

An ensemble is one array with leading axes. A function written for one member may run on an ensemble and return wrong
numbers, especially if there are as many members as coordinates. So each function is compared with its own values for
single members.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from riemannian_ode.arrays import is_torch, like, to_numpy
from riemannian_ode.checks import require_method
from riemannian_ode.dynamics import RISHD
from riemannian_ode.events import Event
from riemannian_ode.flow import Array
from riemannian_ode.integrators import Integrator, PhaseState
from riemannian_ode.metric import Euclidean, Metric, PreconditionerMetric
from riemannian_ode.noise import GradientNoise
from riemannian_ode.objective import is_random
from riemannian_ode.split import PhasePoint, check_self_adjoint

_Function = Callable[..., Any]
_SMALL = 16  # largest ensemble that is compared as a whole
_TOLERANCE = 1e-4  # relative: above float32 rounding; mixed-up members differ by about 1
_JITTER = 0.01  # perturbation relative to 1 + |x|: a start such as w = 0 may hide a difference


def check_user_functions(
    system: RISHD,
    state: PhaseState,
    t: float,
    *,
    scheme: Integrator,
    events: Sequence[Event] = (),
    noise: GradientNoise | None = None,
) -> None:
    """Refuse user functions with a wrong type, shape or batching, and a split that does not fit the metric.

    Args:
        system: The dynamics.
        state: The start, each part of shape ``(*ensemble, p)``.
        t: Start time.
        scheme: The integrator, which determines the derivatives that are used.
        events: Events to watch for.
        noise: Noise in the gradient.

    Raises:
        ValueError: naming the function and what is wrong with it.
    """
    if not isinstance(events, (list, tuple)):
        raise ValueError(f"events is of type {type(events).__name__}; give a list of riemannian_ode.Event.")
    for event in events:
        if not isinstance(event, Event):
            raise ValueError(f"events holds a value of type {type(event).__name__}; give Event(name, function).")
    _check_objective(system.objective, state.w, scheme)
    _check_metric(system.metric, state)
    if system.flat is not None:
        _check_split(system, state.w)
    if noise is not None and noise.depends_on_state:
        _check_members("noise.factor", lambda w: noise.factor_at(t, w), (state.w,))
    ensemble = tuple(state.w.shape[:-1])
    for event in events:
        name = f"event {event.name!r}"

        def at_start(w: Array, m: Array, function: _Function = event.function) -> Any:
            return function(t, w, m)

        values = to_numpy(_checked(name, at_start(*state), state.w, ensemble))
        event.check_values(values, t, state)
        _check_members(name, at_start, state, shape=())


def check_observers(observers: Any) -> None:
    """Refuse observers that are not a dict of functions.

    Raises:
        ValueError: giving their type.
    """
    if not isinstance(observers, Mapping):
        raise ValueError(
            f"observers is of type {type(observers).__name__}; give a dictionary, name to (t, w, m) ↦ array."
        )
    for name, observe in observers.items():
        require_method(f"observers[{name!r}]", observe, "(t, w, m) ↦ array")


def _check_objective(objective: Any, w: Array, scheme: Integrator) -> None:
    ensemble, p = tuple(w.shape[:-1]), w.shape[-1]
    _checked("objective.gradient(w0)", objective.gradient(w), w, (*ensemble, p))
    # A noisy gradient differs at every call, and extra calls would change the later noise.
    if not is_random(objective):
        _check_members("objective.gradient", objective.gradient, (w,), shape=(p,))
    value = getattr(objective, "value", None)
    has_value = callable(value) and _numbers(value, [w]) is not None  # a run does not use it
    if has_value and not _check_members("objective.value", objective.value, (w,), shape=()):
        _checked("objective.value(w0)", objective.value(w), w, ensemble)
    if scheme.implicit and callable(getattr(objective, "hvp", None)):
        v = _normal(w)
        if not _check_members("objective.hvp", objective.hvp, (w, v), shape=(p,)):
            _checked("objective.hvp(w0, v)", objective.hvp(w, v), w, (*ensemble, p))
    if "exact-linear" in scheme.structure and callable(getattr(objective, "hessian", None)):
        _check_members("objective.hessian", objective.hessian, (w,))


def _check_metric(metric: Metric, state: PhaseState) -> None:
    w, shape = state.w, tuple(state.w.shape)
    ours = type(metric).__module__.startswith("riemannian_ode.") and not isinstance(metric, PreconditionerMetric)
    if ours:  # they map a one-member function over the ensemble
        return
    x, y = _normal(w), _normal(w, seed=1)
    functions: dict[str, tuple[_Function, tuple[Array, ...]]] = {"raise_index": (metric.raise_index, (w, x))}
    if metric.variation != "history":
        functions["lower_index"] = metric.lower_index, (w, x)
    if metric.variation == "state":
        functions["correction"] = metric.correction, (w, x, y)
    for name, (function, arguments) in functions.items():
        result = function(*arguments)
        if result is not None:  # a zero correction
            _checked(f"metric.{name}", result, w, shape)
            _check_members(f"metric.{name}", function, arguments, shape=shape[-1:])


def _check_split(system: RISHD, w: Array) -> None:
    flat: Any = system.flat
    covector = _normal(w, seed=2)  # not the start's momentum, which may be 0
    point = PhasePoint(w, covector, system.metric.raise_index(w, covector))

    def project(w: Array, covector: Array, preconditioned: Array, x: Array) -> Any:
        projector = flat(PhasePoint(w, covector, preconditioned))
        require_method("flat(point)", projector, "x ↦ Qx")
        return projector(x)

    if not _check_members("flat", project, (*point, _normal(w)), shape=(w.shape[-1],), moves=1):
        _checked("flat(point)(x)", project(*point, _normal(w)), w, tuple(w.shape))
    if not system.check_split or system.metric.variation == "history":
        return
    few = _few(point) if isinstance(system.metric, Euclidean) else None
    value = None if few is None else _numbers(project, [*few, few[1]])
    if few is not None and value is not None and value.shape == tuple(few[0].shape):
        point = PhasePoint(*few)
    check_self_adjoint(flat(point), system.metric, point.w)


def _normal(w: Array, *, seed: int = 0) -> Array:
    """Standard normal numbers in an array like ``w``, the same at every call."""
    return like(np.random.default_rng(seed).standard_normal(tuple(w.shape)), w)


def _checked(name: str, result: Any, w: Array, shape: tuple[int, ...]) -> Array:
    """Return the result if it is a real array of w's kind and of the expected shape.

    Raises:
        ValueError: giving its type or shape.
    """
    if not shape and isinstance(result, (int, float)):
        return np.asarray(result)
    wanted = "torch tensor" if is_torch(w) else "numpy array"
    if is_torch(result) != is_torch(w) or not (is_torch(result) or isinstance(result, (np.ndarray, np.generic))):
        raise ValueError(f"{name} is of type {type(result).__name__}; return a {wanted}, as w0 is.")
    if tuple(result.shape) != shape:
        batched = "(*ensemble, p) to (*ensemble, p)" if shape == tuple(w.shape) else "(*ensemble, p) to (*ensemble,)"
        raise ValueError(
            f"{name} has shape {tuple(result.shape)} for w of shape {tuple(w.shape)}; it must map {batched}."
        )
    kind = to_numpy(result).dtype
    if kind.kind not in "fiub":
        raise ValueError(f"{name} has dtype {kind}; return real numbers.")
    return result


def _few(arguments: Sequence[Array]) -> list[Array] | None:
    """Three members of a large ensemble as a smaller one; ``None`` for a small ensemble."""
    *ensemble, p = arguments[0].shape
    size = int(np.prod(ensemble))
    return None if size <= _SMALL else [x.reshape(size, p)[[0, size // 2, size - 1]] for x in arguments]


def _check_members(
    name: str,
    function: _Function,
    arguments: Sequence[Array],
    *,
    shape: tuple[int, ...] | None = None,
    moves: int | None = None,
) -> bool:
    """Refuse a function whose values for an ensemble differ from its values for single members.

    The function is called near the arguments, not at them, because a special start may hide a difference. For a large
    ensemble, three members are evaluated together and alone. A function that holds data of every member cannot take
    three members; it is called for the whole ensemble, and then with one member in all places.

    Args:
        name: Name used in errors.
        function: Arrays of shape ``(*ensemble, n)`` ↦ array with the ensemble's leading axes.
        arguments: The arrays.
        shape: Shape of the value for one member, if known.
        moves: How many arguments may be perturbed; all by default.

    Returns:
        Whether the function passed with the given shape.

    Raises:
        ValueError: naming the function, the member and both values.
    """
    if shape is not None and (few := _few(arguments)) is not None:
        value = _numbers(function, few)
        if value is not None and value.shape == (3, *shape):
            arguments = few
    ensemble = tuple(arguments[0].shape[:-1])
    if not ensemble or 0 in ensemble:
        return False
    moved = [
        x + _JITTER * (1.0 + abs(x)) * _normal(x, seed=10 + i) if moves is None or i < moves else x
        for i, x in enumerate(arguments)
    ]
    whole = _numbers(function, moved)
    if whole is None or not np.isfinite(whole).all():  # outside the function's domain
        moved = list(arguments)
        whole = np.asarray(to_numpy(function(*moved)))
    if whole.shape[: len(ensemble)] != ensemble:
        return False
    size = int(np.prod(ensemble))
    for place in sorted({0, size // 2, size - 1}):
        member = tuple(int(i) for i in np.unravel_index(place, ensemble))
        alone = _alone(function, moved, member, whole)
        if alone is None or _agree(whole[member], alone):
            continue
        again = _numbers(function, moved)
        if again is None or not np.array_equal(again, whole, equal_nan=True):
            return False  # a random function
        noise = "; if it draws noise, set is_random = True on the objective" if name == "objective.gradient" else ""
        raise ValueError(
            f"{name} gives member {member} of the ensemble {_short(whole[member])}, and alone {_short(alone)}; write "
            "it for leading axes: w[..., 0] for a coordinate, sums over the last axis, A @ w[..., None] for a product "
            f"(or map a torch function of one member with toy_landscapes.TorchLandscape){noise}."
        )
    return whole.shape == (*ensemble, *(() if shape is None else shape))


def _alone(
    function: _Function, arguments: Sequence[Array], member: tuple[int, ...], whole: np.ndarray
) -> np.ndarray | None:
    """The function's value for one member; ``None`` if it cannot be computed."""
    ensemble = tuple(arguments[0].shape[:-1])
    value = _numbers(function, [x[member] for x in arguments])
    if value is not None and value.shape == whole.shape[len(ensemble) :]:
        return value
    if value is None or value.shape != whole.shape:  # the function holds data of every member
        value = _numbers(function, [0.0 * x + x[member] for x in arguments])
    return value[member] if value is not None and value.shape == whole.shape else None


def _numbers(function: _Function, arguments: Sequence[Array]) -> np.ndarray | None:
    """A function's result as a numpy array; ``None`` if it does not accept the arguments."""
    try:
        numbers = np.asarray(to_numpy(function(*arguments)))
    except Exception:  # a user's function may raise anything
        return None
    return numbers if numbers.dtype.kind in "fiub" else None


def _agree(a: np.ndarray, b: np.ndarray) -> bool:
    precision = np.finfo(a.dtype).eps if a.dtype.kind == "f" else np.finfo(np.float64).eps
    scale = max(float(np.abs(x[np.isfinite(x)]).max(initial=0.0)) for x in (a, b))
    tolerance = max(_TOLERANCE, 16.0 * float(precision) ** 0.5)
    return bool(np.allclose(a, b, rtol=0.0, atol=tolerance * scale, equal_nan=True))


def _short(value: np.ndarray) -> str:
    return np.array2string(value.ravel()[:4], precision=4, separator=", ") + ("…" if value.size > 4 else "")
