"""Results of a probe as data and as tables."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rishd.probing.gradient_noise import NoiseScale
from rishd.probing.lanczos import SpectralMeasure
from rishd.probing.split_curvature import SplitCurvature
from rishd.record import Record

MASKS = ("muon-lite", "soap-lite")  # optimizers that have a mask


@dataclass(frozen=True)
class UpdateProbe:
    """One optimizer's update in a block's spectrum.

    Args:
        optimizer: A key of :data:`rishd.pretraining.presets.OPTIMIZERS`.
        rms: Root mean square of its entries at learning rate 1.
        sizes: √p times the size of ⟨x, u⟩/‖u‖ for the top eigenvectors x, shape ``(eigenvalues,)``; 1 is isotropic.
        curvature: uᵀHu/‖u‖².
        sharp_share: Share of ‖u‖² at curvatures above a tenth of λ_max.
        measure: Distribution of ‖u‖² over curvatures.
    """

    optimizer: str
    rms: float
    sizes: np.ndarray
    curvature: float
    sharp_share: float
    measure: SpectralMeasure


@dataclass(frozen=True)
class BlockProbe:
    """Results for one parameter.

    Args:
        name: Its name.
        shape: Its shape.
        eigenvalues: Largest eigenvalues, descending.
        density: Density of all eigenvalues.
        sharp_share: Share of the eigenvalues above a tenth of λ_max, which is a random direction's ``sharp_share``.
        updates: One per optimizer.
        splits: One per mask of the parameter.
        noise: One per mask, in batches of the probe's ``noise_tokens``.
    """

    name: str
    shape: tuple[int, ...]
    eigenvalues: np.ndarray
    density: SpectralMeasure
    sharp_share: float
    updates: tuple[UpdateProbe, ...]
    splits: tuple[SplitCurvature, ...]
    noise: tuple[NoiseScale, ...] = ()

    @property
    def mean_curvature(self) -> float:
        """tr H/p."""
        return float(self.density.nodes @ self.density.weights)

    def split(self, optimizer: str) -> SplitCurvature | None:
        """The entry of an optimizer's mask, if the parameter has one."""
        return next((split for split in self.splits if split.optimizer == optimizer), None)


@dataclass(frozen=True)
class Probe(Record):
    """All results.

    Args:
        checkpoint: Folder of the model.
        step: Optimizer steps done.
        optimizer: Optimizer of the run.
        lr: Its peak learning rate.
        loss: Loss on the probed tokens, nats per token.
        tokens: Number of probed tokens.
        blocks: One per parameter.
        interrupted: Whether Ctrl-C ended the probe early.
        batch_tokens: Tokens per batch of the run.
        noise_tokens: Tokens per batch of the noise measurement.
    """

    checkpoint: str
    step: int
    optimizer: str
    lr: float
    loss: float
    tokens: int
    blocks: tuple[BlockProbe, ...]
    interrupted: bool = False
    batch_tokens: int = 0
    noise_tokens: int = 0

    @property
    def conclusion(self) -> str:
        """The step that the certificate allows over all blocks, and the masks' coverage."""
        parts = []
        for optimizer in MASKS:
            splits = {block.name: split for block in self.blocks if (split := block.split(optimizer)) is not None}
            if not splits:
                continue
            speedups = np.array([split.speedup for split in splits.values()])
            tightest = min(splits, key=lambda name: splits[name].speedup)
            coverage = np.mean([split.coverage for split in splits.values()])
            chance = np.mean([split.chance for split in splits.values()])
            parts.append(
                f"{optimizer}: the mask covers {coverage:.2f} of the top Hessian eigenspaces (a random one "
                f"{chance:.2f}); at the sharp block's margin C9 allows a flat speed-up χ(1 + αβ₂)/(1 + αβ₁) of "
                f"{speedups.min():.2f} in every block (median {np.median(speedups):.2f}; least in {tightest})."
            )
        return " ".join(parts)

    def summary_table(self) -> list[dict[str, str]]:
        """One row per block: spectrum, coverage and certified speed-up."""
        rows = []
        for block in self.blocks:
            row = {
                "block": block.name,
                "λ₁": f"{block.eigenvalues[0]:.3g}",
                f"λ{len(block.eigenvalues)}": f"{block.eigenvalues[-1]:.3g}",
                "mean": f"{block.mean_curvature:.2g}",
                "lowest": f"{block.density.nodes[0]:.2g}",
            }
            for optimizer in MASKS:
                split = block.split(optimizer)
                row[f"coverage, {optimizer}"] = f"{split.coverage:.2f} ({split.chance:.2f})" if split else ""
                row[f"speed-up, {optimizer}"] = f"{split.speedup:.2f}" if split else ""
            rows.append(row)
        return rows

    def update_table(self) -> list[dict[str, str]]:
        """One row per block: sharp share of each update over a random direction's."""
        return [
            {"block": block.name}
            | {
                update.optimizer: f"{_ratio(update.curvature, block.mean_curvature)} ({100 * update.sharp_share:.2g}%)"
                for update in block.updates
            }
            | {"random": f"1 ({100 * block.sharp_share:.2g}%)"}
            for block in self.blocks
        ]

    def noise_table(self) -> list[dict[str, str]]:
        """One row per block and mask: tokens at which noise equals the gradient, in sharp and in flat directions."""
        return [
            {
                "block": block.name,
                "mask": noise.optimizer,
                "sharp": f"{noise.sharp * self.noise_tokens:.2g}",
                "flat": f"{noise.flat * self.noise_tokens:.2g}",
                "flat, run's batches": f"{noise.flat * self.noise_tokens / self.batch_tokens:.2g}",
                "sharp share of the gradient": f"{noise.sharp_share:.2f}",
            }
            for block in self.blocks
            for noise in block.noise
        ]

    def allowance_table(self) -> list[dict[str, str]]:
        """One row per mask and limit: smallest certified learning rate over all blocks, and smallest χ by β₂."""
        rows = []
        for optimizer in MASKS:
            splits = [split for block in self.blocks if (split := block.split(optimizer)) is not None]
            for allowances in zip(*(split.allowances for split in splits), strict=True):
                row = {
                    "mask": optimizer,
                    "limit": allowances[0].rule,
                    "lr": f"{min(allowance.largest_lr for allowance in allowances):.2g}",
                }
                chi = np.min([allowance.chi for allowance in allowances], axis=0)
                here = np.min([allowance.chi_at_lr for allowance in allowances], axis=0)  # NaN if a block has none
                for beta, equal, now in zip(allowances[0].beta_flat, chi, here, strict=True):
                    row[f"β₂ = {beta:g}"] = f"{equal:.2f} / " + (f"{now:.2f}" if np.isfinite(now) else "none")
                rows.append(row)
        return rows


def _ratio(value: float, scale: float) -> str:
    return f"{value / scale:.2g}" if scale > 0 else f"{value:.1e}"
