"""Array helpers for flows with memory: one batch axis of members, numpy and torch, lost members."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from riemannian_ode.arrays import is_torch, namespace
from riemannian_ode.flow import Array


def as_tensor(x: Array) -> Array:
    """The same numbers as a torch tensor."""
    import torch

    if is_torch(x):
        return x
    x = np.asarray(x)
    return torch.from_numpy(x if x.flags.writeable else x.copy())


def member_axis(w: Array) -> tuple[int, ...]:
    """The ensemble as one batch axis, or no axis for a single member."""
    return (math.prod(w.shape[:-1]),) if w.ndim > 1 else ()


def in_kind_of(w: Array, x: Array) -> Array:
    """A tensor as an array of the kind and dtype of ``w``."""
    return x.to(w.dtype) if is_torch(w) else np.asarray(x.numpy(), dtype=w.dtype)


def broadcast(coefficient: Any, m: Array, w: Array) -> Any:
    """A coefficient of shape ``(*ensemble, 1)`` so that it broadcasts against ``(members, *shape)``."""
    if isinstance(coefficient, float) or coefficient.ndim == 0:
        return coefficient
    values = as_tensor(coefficient).broadcast_to((*w.shape[:-1], 1))
    return values.reshape((*member_axis(w), *(1,) * (m.ndim - len(member_axis(w)))))


def sheltered(w: Array, z: Array, g: Array) -> tuple[Array, Array, Array, Array | None]:
    """Replace non-finite members, on which factorisations would raise, with plain numbers; also return which they are.

    Their memory becomes 1, because zeros over a mass of zero would be NaN again.
    """
    xp = namespace(w)
    sound = xp.isfinite(w).all(-1) & xp.isfinite(z).all(-1) & xp.isfinite(g).all(-1)
    if bool(sound.all()):
        return w, z, g, None
    kept = sound[..., None]
    return xp.where(kept, w, 0.0), xp.where(kept, z, 1.0), xp.where(kept, g, 0.0), ~sound


def with_lost(x: Array, lost: Array | None) -> Array:
    """Set lost members to NaN."""
    return x if lost is None else namespace(x).where(lost[..., None], math.nan, x)
