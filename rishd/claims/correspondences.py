"""Claims C17a to C17p: each row of the correspondence table is a known optimizer."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Muon, RMSprop

from discretizations.correspondence import Correspondence, KnownOptimizer
from discretizations.known_optimizers import CORRESPONDENCES
from discretizations.preconditioners.polar_factor import TORCH_COEFFICIENTS
from discretizations.proofs.correspondences import row_residuals
from rishd.claims.claim import Gather, register_claim
from rishd.claims.evidence import Curve, Evidence, Hypothesis, Identity, Panel, Proof
from rishd.claims.published_optimizers import (
    Gradient,
    averaged_shampoo_path,
    kl_path,
    lion_path,
    normuon_path,
    shampoo_path,
    soap_path,
    torch_paths,
)
from rishd.claims.trial import Box, Range, draw

STEPS = 100
TOLERANCE = 1e-12  # tolerance relative to the path's largest parameter
_SIZE = 12  # coordinates of a vector
_GROUP, _MATRICES = 16, 4  # instances that share hyperparameters, for vectors and for matrices
_MANY = 1000  # with this many instances all matrix instances are run, with fewer one in eight: 100 steps take 50 ms
_MOVED = 1e-2  # relative to the largest parameter: a path that moves less proves little

Settings: TypeAlias = Mapping[str, Any]
Paths: TypeAlias = Callable[[Settings, Sequence[Tensor], Sequence[Gradient]], Tensor]


@dataclass(frozen=True)
class _Peer:
    """The reference implementation of a row.

    Args:
        paths: Settings of the row, starts and gradients ↦ paths, shape ``(steps, n, *shape)``.
        box: Ranges of the hyperparameters; ``frequency`` is rounded down.
        matrix: Whether the parameters are matrices.
        determined: Largest |n₁ − n₂| at which the first gradient determines the eigenbases; ``None`` if that does not
            matter.
    """

    paths: Paths
    box: Box
    matrix: bool = False
    determined: int | None = None

    def shape(self, rng: np.random.Generator, index: int) -> tuple[int, ...]:
        """Shape of the parameters of group ``index``; in every eighth the first gradient may leave eigenbases open."""
        if not self.matrix:
            return (_SIZE,)
        rows = int(rng.integers(2, 6))
        if self.determined is None:
            return rows, int(rng.integers(2, 6))
        if index % 8 == 7:
            return rows, rows + self.determined + 1
        return rows, max(2, rows + int(rng.integers(-self.determined, self.determined + 1)))

    def hypotheses(self, shape: tuple[int, ...], n: int) -> dict[str, np.ndarray]:
        """Hypotheses on n instances of a shape, in addition to a path that moves."""
        if self.determined is None:
            return {}
        return {"first gradient determines the eigenbases": np.full(n, abs(shape[0] - shape[-1]) <= self.determined)}


def row_claim(key: str) -> Gather:
    """The claim of one row.

    Args:
        key: A key of :data:`discretizations.known_optimizers.CORRESPONDENCES`.
    """
    row, peer = CORRESPONDENCES[key], _PEERS[key]

    def gather(rng: np.random.Generator, instances: int) -> Sequence[Evidence | Panel]:
        size = _MATRICES if peer.matrix else _GROUP
        count = instances if not peer.matrix or instances >= _MANY else -(-instances // 8)
        runs = [
            _compare(row, peer, rng, index, min(size, count - start))
            for index, start in enumerate(range(0, count, size))
        ]
        deviations = np.concatenate([run.deviations for run in runs], axis=-1)
        hypotheses = [Hypothesis(name, np.concatenate([run.met[name] for run in runs])) for name in runs[0].met]
        met = np.all([hypothesis.met for hypothesis in hypotheses], axis=0)
        return [
            Proof("the row's formulas in the update rule against the published recurrence", row_residuals(row)),
            Identity(
                f"{STEPS} steps of the update rule against {row.implementation}, over the largest parameter",
                deviations.max(0),
                TOLERANCE,
                "rounding",
                tuple(hypotheses),
            ),
            _panel(row, deviations[:, met]),
        ]

    text = row.as_text()
    gather.__name__ = gather.__qualname__ = key.replace("-", "_")
    gather.__doc__ = f"""{row.optimizer} as a row of the correspondence table.

    Statement: {row.implementation} is the update rule (semi-implicit Euler at h = 1, R = 0) with F = {row.metric},
    α = {text["α"]}, β = {text["β"]}, gain c = {text["c"]}, η = {text["η"]}, λ' = {text["λ'"]}; its momentum is a
    {row.momentum}.

    Hypotheses: exact arithmetic for the proof; float64 for the comparison, coefficients as in the table.

    Proof: docs/guides/correspondence; symbolic: the update rule itself on symbols, with an undetermined function for
    F⁻¹, less the published recurrence.

    Check: {STEPS} steps each from random starts on random nonquadratic objectives with random hyperparameters.

    Source: {row.implementation}; derived in docs/guides/correspondence.
    """
    return gather


class _Comparison(NamedTuple):
    """Deviations after every step, shape ``(steps, n)``, and the hypotheses by name, shape ``(n,)``."""

    deviations: np.ndarray
    met: dict[str, np.ndarray]


def _compare(row: Correspondence, peer: _Peer, rng: np.random.Generator, index: int, n: int) -> _Comparison:
    """Compare n runs with equal hyperparameters and shapes."""
    settings: dict[str, Any] = {name: float(value[0]) for name, value in draw(peer.box, rng, 1).items()}
    if "frequency" in settings:
        settings["frequency"] = int(settings["frequency"])
    shape = peer.shape(rng, index)
    starts = [torch.as_tensor(rng.normal(size=shape)) for _ in range(n)]
    gradients = [_gradient(rng, shape) for _ in range(n)]
    published = peer.paths(settings, starts, gradients)
    rule = row.with_settings(**settings)
    found = torch.stack([rule_path(rule, *pair, STEPS) for pair in zip(starts, gradients, strict=True)], dim=1)
    scale = published.flatten(2).abs().amax((0, 2))
    way = (published[-1] - torch.stack(starts)).flatten(1).abs().amax(1) / scale
    deviations = (found - published).flatten(2).abs().amax(2) / scale
    moved = {f"moved by {_MOVED:g} of the largest parameter": (way >= _MOVED).numpy()}
    return _Comparison(deviations.numpy(), moved | peer.hypotheses(shape, n))


def _gradient(rng: np.random.Generator, shape: tuple[int, ...]) -> Gradient:
    """∇f of ½‖A vec(w)‖² + Σ log cosh w, which is nonquadratic, smooth and of full rank."""
    size = int(np.prod(shape))
    matrix = torch.as_tensor(rng.normal(size=(size, size)) / size**0.5)
    gram = matrix.T @ matrix
    return lambda w: (gram @ w.reshape(-1)).reshape(shape) + torch.tanh(w)


def rule_path(rule: KnownOptimizer, start: Tensor, gradient: Gradient, steps: int) -> Tensor:
    """Parameters of a row after every step, shape ``(steps, *shape)``.

    Args:
        rule: A row with hyperparameters.
        start: Parameters.
        gradient: Parameters ↦ g.
        steps: Number of steps; a first gradient that makes no step (SOAP) is not counted.
    """
    state = rule.start(start)
    path: list[Tensor] = []
    while len(path) < steps:
        moved = rule.step(state, gradient(state.w))
        if moved.w is not state.w:
            path.append(moved.w)
        state = moved
    return torch.stack(path)


def _by_torch(optimizer: type[torch.optim.Optimizer], names: Mapping[str, str], **fixed: Any) -> Paths:
    """Paths of a torch optimizer; ``names`` maps the row's hyperparameters to torch's."""

    def paths(settings: Settings, starts: Sequence[Tensor], gradients: Sequence[Gradient]) -> Tensor:
        chosen = {theirs: settings[ours] for ours, theirs in names.items()} | fixed
        if "beta1" in settings:
            chosen["betas"] = (settings["beta1"], settings["beta2"])
        return torch_paths(lambda parameters: optimizer(parameters, **chosen), starts, gradients, STEPS)

    return paths


def _one_by_one(path: Callable[..., Tensor], **fixed: Any) -> Paths:
    """Paths of an algorithm for one tensor."""

    def paths(settings: Settings, starts: Sequence[Tensor], gradients: Sequence[Gradient]) -> Tensor:
        found = [path(*pair, STEPS, **settings, **fixed) for pair in zip(starts, gradients, strict=True)]
        return torch.stack(found, dim=1)

    return paths


_LR, _MU = Range(0.01, 0.1, log=True), Range(0.5, 0.95)
_BETAS = {"beta1": Range(0.5, 0.9), "beta2": Range(0.95, 0.999)}
_DECAY, _EPS = Range(0.0, 0.3), Range(1e-2, 1e-1, log=True)  # a smaller ε makes paths chaotic near the minimum
_KL: Box = {
    "lr": Range(1e-3, 1e-2, log=True),
    "eps": _EPS,
    "weight_decay": _DECAY,
    "frequency": Range(1.0, 10.9),
    **_BETAS,
}
_PEERS: dict[str, _Peer] = {
    "sgd": _Peer(_by_torch(SGD, {"lr": "lr"}), {"lr": _LR}),
    "sgd-momentum": _Peer(_by_torch(SGD, {"lr": "lr", "mu": "momentum"}), {"lr": _LR, "mu": _MU}),
    "sgd-nesterov": _Peer(_by_torch(SGD, {"lr": "lr", "mu": "momentum"}, nesterov=True), {"lr": _LR, "mu": _MU}),
    "rmsprop": _Peer(
        _by_torch(RMSprop, {"lr": "lr", "beta2": "alpha", "eps": "eps"}),
        {"lr": Range(1e-3, 1e-2, log=True), "beta2": _BETAS["beta2"], "eps": _EPS},
    ),
    "rmsprop-momentum": _Peer(
        _by_torch(RMSprop, {"lr": "lr", "mu": "momentum", "beta2": "alpha", "eps": "eps"}),
        {"lr": Range(5e-4, 2e-3, log=True), "mu": _MU, "beta2": _BETAS["beta2"], "eps": _EPS},
    ),
    "adam": _Peer(
        _by_torch(Adam, {"lr": "lr", "eps": "eps"}), {"lr": Range(1e-3, 3e-2, log=True), "eps": _EPS, **_BETAS}
    ),
    "adamw": _Peer(
        _by_torch(AdamW, {"lr": "lr", "eps": "eps", "weight_decay": "weight_decay"}),
        {"lr": Range(1e-3, 3e-2, log=True), "eps": _EPS, "weight_decay": _DECAY, **_BETAS},
    ),
    "muon": _Peer(
        _by_torch(Muon, {"lr": "lr", "mu": "momentum", "weight_decay": "weight_decay"}, nesterov=False),
        {"lr": Range(1e-3, 3e-2, log=True), "mu": _MU, "weight_decay": _DECAY},
        matrix=True,
    ),
    "muon-nesterov": _Peer(
        _by_torch(Muon, {"lr": "lr", "mu": "momentum", "weight_decay": "weight_decay"}, nesterov=True),
        {"lr": Range(1e-3, 3e-2, log=True), "mu": _MU, "weight_decay": _DECAY},
        matrix=True,
    ),
    "shampoo": _Peer(_one_by_one(shampoo_path), {"lr": Range(0.05, 0.3, log=True), "eps": _EPS}, matrix=True),
    "shampoo-ema": _Peer(
        _one_by_one(averaged_shampoo_path),
        {"lr": Range(1e-3, 2e-2, log=True), "eps": _EPS, "weight_decay": _DECAY, **_BETAS},
        matrix=True,
    ),
    "soap": _Peer(
        _one_by_one(soap_path),
        {
            "lr": Range(1e-3, 2e-2, log=True),
            "eps": _EPS,
            "weight_decay": _DECAY,
            "frequency": Range(1.0, 10.9),
            **_BETAS,
        },
        matrix=True,
        determined=1,
    ),
    "lion": _Peer(_one_by_one(lion_path), {"lr": Range(1e-3, 1e-2, log=True), "weight_decay": _DECAY, **_BETAS}),
    "normuon": _Peer(
        _one_by_one(normuon_path, coefficients=TORCH_COEFFICIENTS),
        # Smaller rates than Muon's: near the minimum the polynomial's path is chaotic, and the two codes round
        # differently.
        {"lr": Range(3e-3, 8e-3, log=True), "mu": _MU, "beta2": _BETAS["beta2"], "weight_decay": _DECAY},
        matrix=True,
    ),
    "kl-soap": _Peer(_one_by_one(kl_path, is_shampoo=False), _KL, matrix=True, determined=0),
    "kl-shampoo": _Peer(_one_by_one(kl_path, is_shampoo=True), _KL, matrix=True, determined=0),
}


def _panel(row: Correspondence, deviations: np.ndarray) -> Panel:
    """Plot of the instances' median and largest deviation over the steps."""
    steps, least = np.arange(1, len(deviations) + 1), np.finfo(np.float64).eps / 8.0
    curves = (
        Curve("largest", steps, np.maximum(deviations.max(1), least)),
        Curve("median", steps, np.maximum(np.median(deviations, axis=1), least)),
        Curve("tolerance", steps, np.full(len(steps), TOLERANCE), "bound"),
    )
    title = f"{row.optimizer} against the update rule, {deviations.shape[1]} runs"
    return Panel(title, "step", "deviation / largest parameter", curves, log="y")


for _letter, (_key, _row) in zip(string.ascii_lowercase, CORRESPONDENCES.items(), strict=False):
    register_claim(f"C17{_letter}", f"{_row.optimizer} as a row of one rule", seconds=20 if _letter > "g" else 6)(
        row_claim(_key)
    )
