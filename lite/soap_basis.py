"""State of the SOAP-LITE rule, and its eigenbases: the first ones, and their refresh in turn."""

from __future__ import annotations

from typing import NamedTuple, overload

import torch
from torch import Tensor

from discretizations.matrices.eigenbases import (
    first_eigenbases,
    from_eigenbasis,
    refreshed_eigenbasis,
    to_eigenbasis,
)

_MATRIX = (-2, -1)


class SOAPState(NamedTuple):
    """State of matrices of shape ``(*batch, m, n)``, at least float32; ``None`` belongs to a side that is not rotated.

    Args:
        m: M', first moment in the eigenbasis, shape of the matrices.
        v: V, second moment in the eigenbasis, shape of the matrices.
        left: Lower triangle of L, shape ``(*batch, m, m)``; the other entries have no meaning.
        right: Lower triangle of R, shape ``(*batch, n, n)``.
        left_basis: Q_L, zero before the first gradient, shape ``(*batch, m, m)``.
        right_basis: Q_R, shape ``(*batch, n, n)``.
        hi: Upper threshold of the mask, shape ``(*batch,)``.
        lo: Lower threshold of the mask, shape ``(*batch,)``.
    """

    m: Tensor
    v: Tensor
    left: Tensor | None
    right: Tensor | None
    left_basis: Tensor | None
    right_basis: Tensor | None
    hi: Tensor
    lo: Tensor


def with_first_bases(state: SOAPState, g: Tensor) -> SOAPState:
    """State with the eigenbases of its factors after the first gradient.

    Args:
        state: State whose factors have seen ``g``.
        g: The gradient, shape ``(m, n)`` or ``(batch, m, n)``, in the state's floating type.
    """
    if state.left is None and state.right is None:
        return state
    both = state.left is not None and state.right is not None  # the shorter side is always within the limit
    left, right = first_eigenbases(g, both=both)
    return state._replace(left_basis=left, right_basis=right)


def refreshed_where_regular(state: SOAPState, due: list[int], *, step: int, count: Tensor | None) -> SOAPState:
    """State whose matrices ``due`` have new bases, but for those whose longer side's factor cannot have full rank yet.

    A factor of t + 1 gradients m×n has rank (t + 1)·min(m, n) at most. While that is less than its side, rounding would
    choose the rest of the new basis, so that they keep the first one until their next turn.

    Args:
        state: State after a step; its moments are changed in place.
        due: Places in the batch.
        step: How many gradients these matrices had seen before the step, or their phase.
        count: The gradients, where ``step`` is the phase.
    """
    shorter, longer = sorted(state.m.shape[-2:])
    needed = -(-longer // max(1, shorter))
    if step + 1 >= needed:  # true of the count, too, of which the step may be the phase
        return _refreshed(state, due)
    if count is None:
        return state
    old = state._replace(m=state.m.clone(), v=state.v.clone())
    new = _refreshed(state, due)
    is_regular = count + 1 >= needed
    chosen: dict[str, Tensor] = {}
    for key in ("m", "v", "left_basis", "right_basis"):
        before, after = getattr(old, key), getattr(new, key)
        if after is not None:
            chosen[key] = torch.where(is_regular, after, before)
    return new._replace(**chosen)


def _refreshed(state: SOAPState, due: list[int]) -> SOAPState:
    """State whose matrices ``due`` have new bases; M' turns with them, V follows the order of their columns.

    The moments, which are new at this step, are changed in place.
    """
    left_basis, right_basis = (None if x is None else x.clone() for x in (state.left_basis, state.right_basis))
    for i in due:
        m, v = single(state.m, i), single(state.v, i)
        old = single(left_basis, i), single(right_basis, i)
        new = []
        for axis, factor, basis in zip(_MATRIX, (state.left, state.right), old, strict=True):
            refreshed: Tensor | None = None
            if factor is not None and basis is not None:
                refreshed, order = refreshed_eigenbasis(single(factor, i), basis)
                v.copy_(v.index_select(axis, order))
            new.append(refreshed)
        m.copy_(to_eigenbasis(from_eigenbasis(m, *old), *new))
        for basis, refreshed in zip(old, new, strict=True):
            if basis is not None and refreshed is not None:
                basis.copy_(refreshed)
    return state._replace(left_basis=left_basis, right_basis=right_basis)


@overload
def single(x: Tensor, place: int) -> Tensor: ...


@overload
def single(x: None, place: int) -> None: ...


@overload
def single(x: Tensor | None, place: int) -> Tensor | None: ...


def single(x: Tensor | None, place: int) -> Tensor | None:
    """One matrix of a batch, as a view."""
    return x if x is None or x.ndim == 2 else x[place]
