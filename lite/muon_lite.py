"""MuonLITE: Muon-LITE for matrices, AdamW-LITE for everything else; and plain Muon as its base."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from lite.adamw import AdamWRule, AdamWState, adamw_update, initial_adamw_state
from lite.muon import MASKS, PLAIN_FRACTION, Mask, MuonRule, initial_rho, muon_update
from lite.optimizer import RULES, LITEOptimizer, require_range

_SCHEDULE_KEYS = ("initial_lr", "peak_chi", "peak_beta_flat")  # what schedulers leave in groups


class MuonLITE(LITEOptimizer):
    r"""Muon with larger learning rate and Hessian damping along flat directions.

    Matrices (``rule="muon"``) move by :func:`lite.muon.muon_update`, other parameters (``rule="adamw"``) by
    :func:`lite.adamw.adamw_update`. With χ = 1 and β_sharp = β_flat = 0 it is :class:`Muon`.

    Args:
        params: ``param_groups(model)``, or tensors or groups as for any torch optimizer (then all must be matrices
            unless a group says ``rule="adamw"``).
        lr: Learning rate η; the update's root mean square is 0.2·lr as AdamW's would be.
        momentum: θ in (0, 1).
        weight_decay: λ ≥ 0, decoupled.
        chi: χ ≥ 1, learning-rate ratio of flat directions.
        beta_sharp: β₁ > −1, Hessian damping of sharp directions, in published units: beside msign(M̃).
        beta_flat: β₂ ≥ β₁, the same for flat directions.
        sharp_fraction: r in [0, 1], fraction of directions that count as sharp; matrices with r ≤ 1e−6 run plain
            Muon, as published.
        ns_steps: Newton–Schulz steps (Polar Express); 0 takes exact polar factors by SVD (for tests).
        mask: ``"threshold"``, the published algorithm step for step, or ``"exact"``, the top-k right singular space of
            M̃ by SVD with k = round(r·min(m, n)).
        adamw_betas: EMA coefficients of AdamW groups.
        eps: ε of AdamW groups.

    Raises:
        ValueError: for a hyperparameter out of range or a tensor that its rule cannot take.

    Source: arXiv:2602.22681, Muon-LITE and AdamW-LITE with the published settings for LLaMA.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
        chi: float = 2.0,
        beta_sharp: float = -0.25,
        beta_flat: float = 1.0,
        sharp_fraction: float = 0.1,
        ns_steps: int = 6,
        mask: Mask = "threshold",
        adamw_betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(
            params,
            {
                "rule": "muon",
                "kind": "matrix",
                "lr": lr,
                "momentum": momentum,
                "weight_decay": weight_decay,
                "chi": chi,
                "beta_sharp": beta_sharp,
                "beta_flat": beta_flat,
                "sharp_fraction": sharp_fraction,
                "ns_steps": ns_steps,
                "mask": mask,
                "adamw_betas": tuple(adamw_betas),
                "eps": eps,
            },
        )

    def check_group(self, group: dict[str, Any]) -> None:
        unknown = sorted(set(group) - set(self.defaults) - {"params", "param_names", *_SCHEDULE_KEYS})
        if unknown:
            raise ValueError(f"a group has unknown settings {unknown}; known are {sorted(self.defaults)}.")
        if group["rule"] not in RULES:
            raise ValueError(f"rule = {group['rule']!r} is unknown. Choose one of: {', '.join(RULES)}.")
        require_range(group, "lr", 0.0, math.inf, "it is the learning rate")
        require_range(group, "weight_decay", 0.0, math.inf, "it shrinks the weights by lr·weight_decay a step")
        require_range(group, "chi", 1.0, math.inf, "LITE speeds flat directions up; χ = 1 is the base optimizer")
        require_range(group, "sharp_fraction", 0.0, 1.0, "it is the fraction of directions that count as sharp")
        if not 0.0 < group["momentum"] < 1.0:
            raise ValueError(f"momentum = {group['momentum']!r} must lie strictly between 0 and 1; 0.95 is published.")
        for name in ("beta_sharp", "beta_flat"):
            require_range(group, name, -math.inf, math.inf, "it is a Hessian damping")
            if group[name] <= -1.0:
                raise ValueError(
                    f"{name} = {group[name]!r} must be above −1: under a steady gradient the update is "
                    "(1 + β)·msign(g), so at or below −1 it stops or climbs; published are −0.25 (sharp) and 1 (flat)."
                )
        if group["beta_flat"] < group["beta_sharp"]:
            raise ValueError(
                f"beta_flat = {group['beta_flat']!r} is below beta_sharp = {group['beta_sharp']!r}: LITE damps flat "
                "directions at least as much as sharp ones, whose stable learning rate falls as β grows."
            )
        if group["mask"] not in MASKS:
            raise ValueError(f"mask = {group['mask']!r} is unknown. Choose one of: {', '.join(MASKS)}.")
        if not isinstance(group["ns_steps"], int) or group["ns_steps"] < 0:
            raise ValueError(f"ns_steps = {group['ns_steps']!r} must be a whole number; 6 is published, 0 means SVD.")
        if len(group["adamw_betas"]) != 2 or not all(0.0 <= beta < 1.0 for beta in group["adamw_betas"]):
            raise ValueError(f"adamw_betas = {group['adamw_betas']!r} must be two numbers in [0, 1).")
        require_range(group, "eps", 0.0, math.inf, "it is AdamW's denominator floor")
        if group["eps"] == 0:
            raise ValueError("eps = 0 divides by zero where a gradient has always been zero; 1e-8 is published.")
        self._check_parameters(group)

    @staticmethod
    def _check_parameters(group: dict[str, Any]) -> None:
        names = group.get("param_names", range(len(group["params"])))
        for name, p in zip(names, group["params"], strict=True):
            if p.is_complex():
                raise ValueError(f"parameter {name} is complex; optimize its real view (torch.view_as_real).")
            if group["rule"] == "muon" and p.ndim != 2:
                raise ValueError(
                    f"parameter {name} has shape {tuple(p.shape)}, but rule 'muon' takes matrices; use "
                    "MuonLITE(param_groups(model)), or give it a group with rule='adamw'."
                )

    def init_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        for p in params:
            if self.state[p]:
                continue
            if group["rule"] == "adamw":
                state = initial_adamw_state(p)
                self.state[p] = {
                    "first_moment": state.m,
                    "second_moment": state.v,
                    "step": state.step,
                    "hi": state.hi,
                    "lo": state.lo,
                }
            else:
                self.state[p] = {"momentum": torch.zeros_like(p)}
                if group["mask"] == "threshold" and group["sharp_fraction"] > PLAIN_FRACTION:
                    self.state[p]["rho"] = initial_rho(p)

    def step_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        for p in params:
            if p.grad is not None and p.grad.is_sparse:
                raise ValueError("a gradient is sparse; MuonLITE needs dense ones (nn.Embedding(sparse=False)).")
        self.init_group(group, params)
        if group["rule"] == "adamw":
            self._step_adamw(group, params)
        else:
            self._step_muon(group, params)

    def _step_muon(self, group: dict[str, Any], params: list[Tensor]) -> None:
        rule = MuonRule(
            lr=group["lr"],
            momentum=group["momentum"],
            weight_decay=group["weight_decay"],
            chi=group["chi"],
            beta_sharp=group["beta_sharp"],
            beta_flat=group["beta_flat"],
            sharp_fraction=group["sharp_fraction"],
            ns_steps=group["ns_steps"],
            mask=None if _is_plain(group) else group["mask"],
        )
        alike: defaultdict[tuple[Any, ...], list[Tensor]] = defaultdict(list)
        for p in params:
            if p.numel():
                alike[p.shape, p.dtype, p.device].append(p)
        for batch in alike.values():
            states = [self.state[p] for p in batch]
            thresholded = rule.mask == "threshold"
            w, m, rho = muon_update(
                rule,
                _stack(batch),
                _stack([p.grad for p in batch if p.grad is not None]),
                _stack([state["momentum"] for state in states]),
                _stack([state["rho"] for state in states]) if thresholded else None,
            )
            _write(batch, w)
            _write([state["momentum"] for state in states], m)
            if rho is not None:
                _write([state["rho"] for state in states], rho)

    def _step_adamw(self, group: dict[str, Any], params: list[Tensor]) -> None:
        rule = AdamWRule(
            lr=group["lr"],
            betas=group["adamw_betas"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            chi=group["chi"],
            sharp_fraction=group["sharp_fraction"],
        )
        for p in params:
            if p.grad is None or not p.numel():
                continue
            state = self.state[p]
            before = AdamWState(*(state[key] for key in ("first_moment", "second_moment", "step", "hi", "lo")))
            w, after = adamw_update(rule, p, p.grad, before)
            p.copy_(w)
            for old, new in zip(before, after, strict=True):
                old.copy_(new)


class Muon(MuonLITE):
    """Muon with AdamW for other parameters: :class:`MuonLITE` with χ = 1 and β = 0 in every group.

    It equals ``torch.optim.Muon(adjust_lr_fn="match_rms_adamw")`` on matrices but for the Newton–Schulz polynomial.

    Args:
        params: As for :class:`MuonLITE`; χ and sharp fraction of the groups are ignored.
        lr: Learning rate η.
        momentum: θ in (0, 1).
        weight_decay: λ ≥ 0, decoupled.
        ns_steps: Newton–Schulz steps.
        adamw_betas: EMA coefficients of AdamW groups.
        eps: ε of AdamW groups.

    Source: Jordan et al., *Muon* (2024); scale of arXiv:2502.16982.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
        ns_steps: int = 6,
        adamw_betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(
            params,
            lr,
            momentum=momentum,
            weight_decay=weight_decay,
            chi=1.0,
            beta_sharp=0.0,
            beta_flat=0.0,
            ns_steps=ns_steps,
            adamw_betas=adamw_betas,
            eps=eps,
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group({**param_group, "chi": 1.0, "beta_sharp": 0.0, "beta_flat": 0.0, "mask": "exact"})


def _is_plain(group: dict[str, Any]) -> bool:
    """Whether a group runs plain Muon for good: by its peaks, since a schedule passes through χ = 1 and β = 0."""
    chi, beta_flat = group.get("peak_chi", group["chi"]), group.get("peak_beta_flat", group["beta_flat"])
    return bool(
        group["sharp_fraction"] <= PLAIN_FRACTION
        or (chi == 1 and group["chi"] == 1 and group["beta_sharp"] == beta_flat == group["beta_flat"] == 0)
    )


def _stack(tensors: list[Tensor]) -> Tensor:
    """A batch of several, the tensor itself of one: a single matrix is worked on unbatched (bits, claim C12)."""
    return tensors[0] if len(tensors) == 1 else torch.stack(tensors)


def _write(targets: list[Tensor], values: Tensor) -> None:
    if len(targets) == 1:
        targets[0].copy_(values)
    else:
        torch._foreach_copy_(targets, list(values.unbind()))
