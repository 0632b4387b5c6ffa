"""The alignment study (claim C14): Hessian directions of optimizers' updates, and the momentum mask's coverage.

A tiny transformer is trained once by AdamW on mini-batches. Every optimizer's memory takes in the same gradients, so at
each stage all updates are evaluated at the same point.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from discretizations.matrices.sharp_masks import SubspaceComplement, top_right_subspace
from discretizations.preconditioners.eigenbasis_moment import EigenbasisMoment
from discretizations.preconditioners.identity import Identity
from discretizations.preconditioners.polar_factor import PolarFactor
from discretizations.preconditioners.second_moment import SecondMoment
from discretizations.update_rule import UpdateState, lite_step
from riemannian_ode.flow import lite_direction, momentum_step
from riemannian_ode.preconditioner import Memory, Preconditioner
from rishd.record import Record
from toy_landscapes import BigramModel, TinyTransformer

ALPHA, ETA = 0.1, 3e-3
CHI, BETA_FLAT = 4.0, 1.0  # LITE's settings, with β relative to the preconditioned EMA
OPTIMIZERS = ("SGD", "AdamW", "Muon", "SOAP", "LITE")
_BATCH = 16
_BETA2, _EPS, _FREQUENCY = 0.95, 1e-8, 5
_SHARP_FRACTION = 0.25  # sharp fraction of every matrix's right directions
_BINS = 12
_TOP = 0.05  # fraction of the eigendirections at the sharp end


@dataclass(frozen=True)
class UpdateSpectrum:
    """One optimizer's update over the Hessian's eigendirections.

    Args:
        optimizer: Of :data:`OPTIMIZERS`.
        step: Training steps before it.
        size: Root mean square of √p·⟨v, u⟩/‖u‖ over eigenvectors in each bin of rank, shape ``(bins,)``; 1 everywhere
            is isotropic.
        isotropy: (Σs)²/(pΣs²) with s = ⟨v, u⟩²: 1/3 for a random direction, 1/p for a single eigenvector.
        sharp_share: Share of ‖u‖² along the top 5% of the eigenvectors.
    """

    optimizer: str
    step: int
    size: np.ndarray
    isotropy: float
    sharp_share: float


@dataclass(frozen=True)
class Coverage:
    """Coverage of a matrix's top Hessian eigenspace by the momentum's right subspace.

    Args:
        layer: Name of the parameter.
        step: Training steps before it.
        score: Mean of ‖XV‖² over the top m·k eigenvectors X of the m×n block's Hessian.
        chance: k/n, the score of a random subspace.
    """

    layer: str
    step: int
    score: float
    chance: float


@dataclass(frozen=True)
class AlignmentStudy(Record):
    """Results of the study.

    Args:
        steps: Training steps of the stages.
        losses: Training loss at each stage.
        eigenvalues: Bin edges' mean Hessian eigenvalue at each stage, descending, shape ``(stages, bins)``.
        updates: One row per optimizer and stage.
        coverage: One row per matrix and stage.
    """

    steps: tuple[int, ...]
    losses: tuple[float, ...]
    eigenvalues: np.ndarray
    updates: tuple[UpdateSpectrum, ...]
    coverage: tuple[Coverage, ...]

    def update(self, optimizer: str, step: int) -> UpdateSpectrum:
        """The row of an optimizer and stage."""
        return next(row for row in self.updates if (row.optimizer, row.step) == (optimizer, step))

    def by_isotropy(self) -> list[UpdateSpectrum]:
        """Updates of the last stage, the most isotropic first."""
        return sorted((self.update(name, self.steps[-1]) for name in OPTIMIZERS), key=lambda row: -row.isotropy)

    def covered(self, step: int) -> float:
        """Coverage over that of a random subspace, mean over the matrices."""
        return float(np.mean([row.score / row.chance for row in self.coverage if row.step == step]))

    @property
    def answer(self) -> str:
        """Whether the mask covers the sharp space, and who is isotropic."""
        covered, (most, *_, least) = self.covered(self.steps[-1]), self.by_isotropy()
        verdict = "Yes, the momentum's mask finds" if covered > 1.0 else "No, the momentum's mask does not find"
        return (
            f"{verdict} sharp directions: it covers {covered:.2g} times as much of the top Hessian eigenspaces as a "
            f"random mask. {most.optimizer}'s update is the most isotropic, {least.optimizer}'s the least."
        )

    @property
    def conclusion(self) -> str:
        """Isotropy of the updates, and coverage by the mask."""
        last = self.steps[-1]
        listed = ", ".join(
            f"{row.optimizer} {row.isotropy:.3f} ({100 * row.sharp_share:.0f}%)" for row in self.by_isotropy()
        )
        final = [row for row in self.coverage if row.step == last]
        best, worst = (pick(final, key=lambda row: row.score / row.chance) for pick in (max, min))
        stages = ", ".join(f"{self.covered(step):.2f} after {step} steps" for step in self.steps)
        return (
            f"Isotropy of the update after {last} steps, 1/3 being that of a random direction (in brackets its share "
            f"in the top {100 * _TOP:.0f}% of the Hessian's eigenvectors): {listed}. "
            f"The momentum's right subspace covers the top Hessian eigenspaces of the matrices {stages} times as much "
            f"as a random one, at the end most in {best.layer} ({best.score:.2f} against {best.chance:.2f}) and least "
            f"in {worst.layer} ({worst.score:.2f})."
        )

    def table(self) -> list[dict[str, str]]:
        """One row per optimizer and stage."""
        return [
            {
                "optimizer": row.optimizer,
                "after steps": str(row.step),
                "isotropy": f"{row.isotropy:.3f}",
                f"in the top {100 * _TOP:.0f}%": f"{row.sharp_share:.3f}",
            }
            for row in self.updates
        ]


def alignment_study(
    *, quick: bool = False, seed: int = 0, eta: float = ETA, alpha: float = ALPHA, concentration: float = 0.3
) -> AlignmentStudy:
    """Train once, and evaluate every optimizer's update at each stage.

    Args:
        quick: Whether to use a narrower model and fewer stages.
        seed: Seed of corpus, start and batches.
        eta: Learning rate of AdamW, which trains.
        alpha: 1 − θ of every optimizer's momentum.
        concentration: Concentration of the Dirichlet distribution of the Markov chain's rows; the smaller, the more
            certain the next token.
    """
    chain = np.random.default_rng(seed).dirichlet(np.full(8, concentration), size=8) + 0.01
    model = BigramModel(chain / chain.sum(1, keepdims=True))
    network = TinyTransformer.on_bigrams(model, sequences=64, length=8, width=4 if quick else 8, seed=seed)
    stages = (10, 60) if quick else (10, 100, 400)
    w = torch.as_tensor(network.initial(seed))
    trackers = {
        f"{name}/{key}": _Tracker(name, key, block.shape)
        for name in OPTIMIZERS
        for key, block in network.layout.items()
    }
    generator = torch.Generator().manual_seed(seed)
    m = torch.zeros_like(w)
    updates: list[UpdateSpectrum] = []
    coverage: list[Coverage] = []
    losses, spectra = [], []
    for step in range(stages[-1] + 1):
        batch = torch.randperm(network.samples, generator=generator)[:_BATCH]
        g = network.batch_gradient(w, batch)
        parts = {name: network.layout.unpack(x) for name, x in (("w", w), ("m", m), ("g", g))}
        for tracker in trackers.values():
            tracker.observe(parts["g"][tracker.key])
        if step in stages:
            hessian = network.hessian(w)
            values, vectors = (x.flip(-1) for x in torch.linalg.eigh(hessian))
            ahead = network.layout.unpack(momentum_step(m, g, alpha=alpha, gain=alpha))
            for name in OPTIMIZERS:
                blocks = {
                    key: trackers[f"{name}/{key}"].direction(ahead[key], parts["g"][key]) for key in network.layout
                }
                updates.append(_spectrum(name, step, vectors.mT @ network.layout.pack(blocks)))
            coverage += _coverage(network, hessian, ahead, step)
            losses.append(float(network.value(w)))
            spectra.append([float(part.mean()) for part in values.tensor_split(_BINS)])
        states: dict[str, UpdateState] = {
            key: lite_step(
                parts["w"][key],
                parts["m"][key],
                parts["g"][key],
                eta=eta,
                alpha=alpha,
                gain=alpha,
                precondition=trackers[f"AdamW/{key}"].raise_index,
            )
            for key in network.layout
        }
        w = network.layout.pack({key: state.w for key, state in states.items()})
        m = network.layout.pack({key: state.m for key, state in states.items()})
    return AlignmentStudy(stages, tuple(losses), np.array(spectra), tuple(updates), tuple(coverage))


class _Tracker:
    """One optimizer's metric of one parameter; vectors use Adam's, except for SGD, as in practice.

    Args:
        optimizer: Of :data:`OPTIMIZERS`.
        key: Name of the parameter.
        shape: Its shape.
    """

    def __init__(self, optimizer: str, key: str, shape: tuple[int, ...]) -> None:
        self.optimizer, self.key = optimizer, key
        self.is_matrix = len(shape) == 2
        adam = SecondMoment(beta2=_BETA2, eps=_EPS)
        matrix: dict[str, Preconditioner] = {
            "AdamW": adam,
            "Muon": PolarFactor(iteration="svd"),
            "LITE": PolarFactor(iteration="svd"),
            "SOAP": EigenbasisMoment(beta2=_BETA2, eps=_EPS, frequency=_FREQUENCY),
        }
        self.metric: Preconditioner = Identity() if self.optimizer == "SGD" else matrix[self.optimizer]
        if not self.is_matrix and self.optimizer != "SGD":
            self.metric = adam
        self.memory: Memory | None = None
        self.step = 0

    def observe(self, g: Tensor) -> None:
        """Take in a gradient."""
        if self.memory is None:
            self.memory = self.metric.initial(g)
            if self.metric.skips_first:
                self.memory = self.metric.first(self.memory, g)
                return
        if due := self.metric.due(self.step):  # of the previous step, whose update was evaluated in the old frame
            self.memory, _ = self.metric.jump(self.memory, torch.zeros_like(g), self.step, due=due)
        self.memory = self.metric.observe(self.memory, g, self.metric.to_frame(self.memory, g))
        self.step += 1

    def raise_index(self, covector: Tensor) -> Tensor:
        """F⁻¹ of a covector."""
        if self.memory is None:
            raise RuntimeError("no gradient was observed yet")
        raised: Tensor = self.metric.precondition(self.memory, covector)
        return raised

    def direction(self, m: Tensor, g: Tensor) -> Tensor:
        """The update's direction u; matrices of Muon and LITE get Moonlight's scale, AdamW's root mean square 0.2."""
        is_lite = self.optimizer == "LITE" and self.is_matrix
        rank = _sharp_rank(g.shape[-1]) if self.is_matrix else 0
        u: Tensor = lite_direction(
            m,
            g,
            raise_index=self.raise_index,
            split=(lambda covector, a: SubspaceComplement(top_right_subspace(covector, rank))) if is_lite else None,
            chi=CHI if is_lite else 1.0,
            beta_flat=BETA_FLAT if is_lite else 0.0,
        )
        if self.is_matrix and self.optimizer in ("Muon", "LITE"):
            u = u * (0.2 * max(g.shape) ** 0.5)  # arXiv:2502.16982, section 2.2
        return u


def _sharp_rank(columns: int) -> int:
    return max(1, round(_SHARP_FRACTION * columns))


def _spectrum(optimizer: str, step: int, components: Tensor) -> UpdateSpectrum:
    """The spectrum from components ⟨v_i, u⟩ in order of descending eigenvalue."""
    share = components**2 / (components**2).sum()
    p = len(share)
    size = [float((p * part.mean()) ** 0.5) for part in share.tensor_split(_BINS)]
    top = max(1, round(_TOP * p))
    return UpdateSpectrum(
        optimizer, step, np.array(size), float(1.0 / (p * (share**2).sum())), float(share[:top].sum())
    )


def _coverage(network: TinyTransformer, hessian: Tensor, momenta: dict[str, Tensor], step: int) -> list[Coverage]:
    rows = []
    for name, block in network.layout.items():
        if len(block.shape) != 2:
            continue
        count, columns = block.shape
        rank = min(_sharp_rank(columns), count)
        basis = top_right_subspace(momenta[name], rank)
        vectors = torch.linalg.eigh(hessian[block.coordinates, block.coordinates])[1][:, -count * rank :]
        matrices = vectors.mT.reshape(-1, count, columns)
        score = float(((matrices @ basis) ** 2).sum((-2, -1)).mean())
        rows.append(Coverage(name, step, score, rank / columns))
    return rows
