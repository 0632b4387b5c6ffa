"""The second moment of the gradient, coordinate by coordinate: Adam, RMSprop, AdamW-LITE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from discretizations.preconditioners._registry import PRECONDITIONERS
from discretizations.preconditioners.masks import CoordinateMask, wide_dtype
from riemannian_ode.flow import Projector
from riemannian_ode.preconditioner import Memory, Preconditioner, spread


@dataclass(frozen=True, kw_only=True)
class CoordinateMoment(Preconditioner):
    """Base class of metrics from a second moment of coordinates, with or without a frame.

    Args:
        beta2: θ₂ in [0, 1).
        eps: ε.
        mask: Sharp coordinates; ``None`` for a base method.
    """

    elementwise = ("v",)
    masses = ("v_mass",)

    beta2: float
    eps: float = 1e-8
    mask: CoordinateMask | None = None

    @property
    def has_split(self) -> bool:
        return self.mask is not None

    def admissible(self, memory: Memory) -> Memory:
        return memory | {"v": memory["v"].clamp(min=0.0)} if "v" in memory else memory

    def second_moment(self, memory: Memory) -> Tensor:
        """The second moment of every coordinate, without bias correction."""
        v: Tensor = memory["v"]
        return v

    def flat(
        self, memory: Memory, covector: Tensor, raised: Tensor | None, *, h: Any = 1.0
    ) -> tuple[Projector, Memory]:
        if self.mask is None:
            raise self.no_split()
        return self.mask.flat(memory, self.second_moment(memory), h=h)


@PRECONDITIONERS.register(place=2)
@dataclass(frozen=True, kw_only=True)
class SecondMoment(CoordinateMoment):
    r"""Adam's metric :math:`F = \mathrm{diag}(\sqrt{v/c} + \epsilon)`.

    .. math:: \dot v = (1-\theta_2)(g^2 - v), \qquad \dot c = (1-\theta_2)(1 - c)

    Args:
        beta2: θ₂ in [0, 1).
        eps: ε.
        corrects_bias: Whether v is divided by c = 1 − θ₂ᵗ (true for Adam, false for RMSprop).
        eps_first: Whether ε is added before the correction, :math:`F = \mathrm{diag}((\sqrt v + \epsilon)/\sqrt c)`, as
            LITE's and SOAP's authors do, or after it, as torch does.
        mask: Sharp coordinates; ``None`` for a base method.

    Source: Kingma and Ba, arXiv:1412.6980, Algorithm 1; Tieleman and Hinton, *Lecture 6.5 — RMSprop* (2012);
    arXiv:2602.22681, AdamW-LITE.
    """

    name = "second-moment"

    corrects_bias: bool = True
    eps_first: bool = False

    def initial(self, w: Tensor, *, batch: int = 0) -> Memory:
        memory = {"v": torch.zeros_like(w, dtype=wide_dtype(w))}
        if self.corrects_bias:
            memory["v_mass"] = self.initial_mass(w, batch=batch)
        return memory | (self.mask.initial(w, batch=batch) if self.mask else {})

    def rates(self) -> Mapping[str, float | None]:
        return {"v": 1.0 - self.beta2, "v_mass": 1.0 - self.beta2}

    def averaged(self, memory: Memory, g: Tensor, frame_g: Tensor) -> Memory:
        square = frame_g.to(memory["v"].dtype) ** 2
        return {"v": square} | ({"v_mass": torch.ones_like(memory["v_mass"])} if self.corrects_bias else {})

    def raise_index(self, memory: Memory, covector: Tensor) -> Tensor:
        return covector / diagonal_metric(memory, eps=self.eps, eps_first=self.eps_first)


def _root(v: Tensor) -> Tensor:
    """√v with derivative 0 at v = 0, where autograd would compute ∞·0."""
    if not v.requires_grad:
        return v.sqrt()
    is_positive = v > 0
    return torch.where(is_positive, torch.where(is_positive, v, 1.0).sqrt(), 0.0)


def diagonal_metric(memory: Memory, *, eps: float, eps_first: bool) -> Tensor:
    """Diagonal of F from a memory with ``"v"`` and, with bias correction, ``"v_mass"``."""
    root = _root(memory["v"])
    add, divide = (torch.add, torch.div) if root.requires_grad else (Tensor.add_, Tensor.div_)  # root is a new tensor
    if "v_mass" not in memory:
        return add(root, eps)
    scale = spread(memory["v_mass"].sqrt(), root)
    return divide(add(root, eps), scale) if eps_first else add(divide(root, scale), eps)
