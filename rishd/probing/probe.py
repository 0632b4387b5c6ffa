"""The probe of a checkpoint: spectra of Hessian blocks, updates and masks in them, and the steps that C9 allows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rishd.pretraining.config import OptimizerConfig
from rishd.probing.block_hessian import BlockHessian
from rishd.probing.findings import BlockProbe, Probe, UpdateProbe
from rishd.probing.frozen import FrozenOptimizer, Geometry, geometry
from rishd.probing.gradient_noise import noise_scale
from rishd.probing.lanczos import spectral_density, spectral_measure, top_eigenpairs
from rishd.probing.parameter_choice import ProbeError, matching_names
from rishd.probing.settings import PROBED, ProbeSettings
from rishd.probing.split_curvature import split_curvature
from rishd.probing.trained_model import (
    Inputs,
    load_checkpoint,
    loss_and_count,
    passes,
    training_sequences,
)
from rishd.progress import Advance

_PASS = 16  # sequences per graph
_SHARP_SHARE = 0.1  # relative to λ_max; curvature above it counts as sharp in summaries


def probe(path: Path, settings: ProbeSettings, progress: Advance) -> Probe:
    """Probe a checkpoint.

    Args:
        path: A run's folder, or one of its checkpoints.
        settings: What to measure.
        progress: Called with (what, done, total).

    Raises:
        ProbeError: if the checkpoint cannot be read or no block remains.
    """
    checkpoint = load_checkpoint(path)
    model, config = checkpoint.model, checkpoint.config
    names = chosen_blocks(model, settings.blocks)
    length, batch = config.data.sequence_length, config.training.batch_size
    sequences = max(1, settings.tokens // length)
    observed = sequences + settings.gradients * batch
    inputs = training_sequences(config, observed + settings.noise_batches * _PASS, progress)
    memories = frozen_optimizers(model, config.optimizer, settings.optimizers)
    for k in range(settings.gradients):
        progress("gradients for the optimizers' memories", k, settings.gradients)
        start = sequences + k * batch
        gradients = mean_gradient(model, passes(inputs, start, start + batch, _PASS))
        for memory in memories.values():
            memory.observe(gradients)
    progress("gradients for the optimizers' memories", settings.gradients, settings.gradients)
    samples: list[Mapping[str, Tensor]] = []
    for k, part in enumerate(passes(inputs, observed, observed + settings.noise_batches * _PASS, _PASS)):
        progress("gradients for their noise", k, settings.noise_batches)
        whole = mean_gradient(model, [part])
        samples.append({name: whole[name] for name in names})
    progress("gradients for their noise", settings.noise_batches, settings.noise_batches)
    hessian = BlockHessian(model, passes(inputs, 0, sequences, _PASS), names)
    fraction = config.optimizer.settings.get("sharp_fraction", settings.sharp_fraction)
    blocks: list[BlockProbe] = []
    interrupted = False
    try:
        for k, name in enumerate(names):
            progress("Hessian blocks", k, len(names))
            noisy = [sample[name] for sample in samples]
            blocks.append(
                _probe_block(hessian, name, memories, noisy, settings, lr=config.optimizer.lr, fraction=fraction)
            )
        progress("Hessian blocks", len(names), len(names))
    except KeyboardInterrupt:
        interrupted = True
    return Probe(
        str(checkpoint.folder),
        checkpoint.step,
        config.optimizer.name,
        config.optimizer.lr,
        hessian.loss,
        sequences * length,
        tuple(blocks),
        interrupted,
        batch * length,
        _PASS * length,
    )


def chosen_blocks(model: nn.Module, patterns: Sequence[str] | None) -> list[str]:
    """Names of the parameters to probe.

    Args:
        model: The model.
        patterns: As in :class:`ProbeSettings`.

    Raises:
        ProbeError: for a pattern that matches no trainable parameter.
    """
    names = matching_names(model, patterns)
    if patterns is not None:
        return names
    layers = {name: int(found[1]) for name in names if (found := re.search(r"\.(\d+)\.", name))}
    if not layers:
        raise ProbeError(f"the model has no numbered layers; name its blocks: {', '.join(names)}.")
    middle = sorted(set(layers.values()))[len(set(layers.values())) // 2]
    matrices = {name for name, p in model.named_parameters() if p.ndim == 2}
    return [name for name, layer in layers.items() if layer == middle and name in matrices]


def frozen_optimizers(
    model: nn.Module, run: OptimizerConfig, names: Sequence[str] = PROBED
) -> dict[str, FrozenOptimizer]:
    """The named optimizers; the run's own optimizer gets the run's settings, the others their defaults."""
    return {
        name: FrozenOptimizer.configured(
            model, replace(run, name=name) if name == run.name else OptimizerConfig(name=name)
        )
        for name in names
    }


def mean_gradient(model: nn.Module, batches: Iterable[Inputs]) -> Mapping[str, Tensor]:
    """Gradient of the mean loss over all counted tokens, by parameter name."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p) for name, p in named.items()}
    tokens = 0
    for inputs in batches:
        loss, count = loss_and_count(model, inputs)
        gradients = torch.autograd.grad(loss * count, list(named.values()))
        tokens += count
        for name, gradient in zip(named, gradients, strict=True):
            total[name] += gradient
    return {name: gradient / tokens for name, gradient in total.items()}


def _probe_block(
    hessian: BlockHessian,
    name: str,
    memories: Mapping[str, FrozenOptimizer],
    samples: Sequence[Tensor],
    settings: ProbeSettings,
    *,
    lr: float,
    fraction: float,
) -> BlockProbe:
    parameter, product = hessian.parameters[name], hessian.product(name)
    p = parameter.numel()
    options: dict[str, Any] = {"seed": settings.seed, "dtype": np.dtype(str(parameter.dtype).removeprefix("torch."))}
    top = top_eigenpairs(product, p, min(settings.eigenvalues, p - 1), **options)
    density = spectral_density(product, p, probes=settings.probes, steps=settings.lanczos_steps, **options)
    edge = _SHARP_SHARE * float(top.values[0])
    updates = []
    for optimizer, memory in memories.items():
        u = memory.directions[name].reshape(-1).cpu().numpy()
        measure = spectral_measure(product, u, settings.lanczos_steps)
        updates.append(
            UpdateProbe(
                optimizer,
                float(np.sqrt(np.mean(u**2))),
                np.abs(top.vectors.T @ u) * p**0.5 / np.linalg.norm(u),
                float(measure.nodes @ measure.weights),
                float(measure.weights[measure.nodes > edge].sum()),
                measure,
            )
        )
    geometries = _geometries(memories, name, fraction)
    splits = [
        split_curvature(optimizer, hessian, name, geometry, top.vectors, lr=lr, seed=settings.seed)
        for optimizer, geometry in geometries.items()
    ]
    noise = [noise_scale(optimizer, samples, geometry) for optimizer, geometry in geometries.items()]
    return BlockProbe(
        name,
        tuple(parameter.shape),
        top.values,
        density,
        float(density.weights[density.nodes > edge].sum()),
        tuple(updates),
        tuple(splits),
        tuple(noise),
    )


def _geometries(memories: Mapping[str, FrozenOptimizer], name: str, fraction: float) -> dict[str, Geometry]:
    """Metrics and LITE masks of a parameter."""
    if memories["muon"].directions[name].ndim != 2:
        return {}
    made = {f"{base}-lite": geometry(memories[base], name, fraction) for base in ("muon", "soap")}
    return {optimizer: found for optimizer, found in made.items() if found is not None}
