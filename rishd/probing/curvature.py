"""Curvature of any model: spectra, curvature along an optimizer's next update, and gradient noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from riemannian_ode.checks import require_choice
from rishd.probing.curvature_findings import ModelCurvature, OperatorSpectrum, UpdateCurvature
from rishd.probing.evaluation import evaluating
from rishd.probing.frozen import FrozenOptimizer
from rishd.probing.gradient_noise import NoiseScale, parts_noise
from rishd.probing.lanczos import Product, spectral_density, top_eigenpairs
from rishd.probing.loss_graphs import OPERATORS, LossGraphs, Operator, common_dtype, on_parts
from rishd.probing.model_passes import Batch, Loss, checked_batches, has_outputs, model_passes, wide_model
from rishd.probing.optimizer_metric import metric_root
from rishd.probing.parameter_choice import ProbeError, matching_names

_ASYMMETRY = 1e-2  # relative to random vectors; far above float32 rounding


def probe_model(
    model: nn.Module,
    loss: Loss | None,
    batches: Sequence[Batch],
    *,
    parameters: Sequence[str] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    operators: Sequence[Operator] | None = None,
    eigenvalues: int = 10,
    probes: int = 4,
    lanczos_steps: int = 30,
    seed: int = 0,
) -> ModelCurvature:
    """Measure the curvature of a model's mean loss at its current parameters.

    The model is in evaluation mode during the measurement. Afterwards model, optimizer and random state are restored to
    the last bit. Half-precision parameters are probed in a float32 copy, with a warning.

    Args:
        model: Any module on one device whose loss can be differentiated twice.
        loss: For pairs: (output, target) ↦ the mean loss over the output's first axis. For mappings: (model, batch) ↦
            the mean loss, for which only the Hessian is available; or ``None`` for a causal language model with
            ``labels``, whose examples are tokens.
        batches: Pairs (input, target), or mappings of the model's arguments. An input may also be a mapping.
        parameters: Patterns of the names to probe, such as ``["*.mlp.*"]``; by default all trainable ones. The
            operators are their diagonal block; other parameters are fixed.
        optimizer: The model's optimizer in its current state, whose next update is measured.
        operators: ``"hessian"``, ``"gauss-newton"`` and ``"fisher"`` (empirical, the second moment of the gradients of
            single examples); by default all that the loss allows.
        eigenvalues: Number of top eigenpairs per operator.
        probes: Number of random vectors for the spectral density.
        lanczos_steps: Lanczos steps per random vector.
        seed: Seed of the random vectors.

    Raises:
        ProbeError: for batches, losses, parameters or models that cannot be probed, naming them.
    """
    model = getattr(model, "_orig_mod", model)  # compiled code has no second derivatives
    listed = checked_batches(batches, loss)
    chosen = _operators(operators, listed, loss)
    for setting, value, least in (
        ("eigenvalues", eigenvalues, 1),
        ("probes", probes, 1),
        ("lanczos_steps", lanczos_steps, 2),
    ):
        if value < least:
            raise ProbeError(f"{setting} = {value!r} must be at least {least}.")
    names = matching_names(model, parameters)
    trained = None if optimizer is None else _trained(optimizer, model, names)
    wide = wide_model(model)
    held = {name: p for name, p in wide.named_parameters() if name in set(names)}
    dimension = sum(p.numel() for p in held.values())
    if dimension < 2:
        raise ProbeError("the chosen parameters are a single number; choose more.")
    with evaluating(wide):
        graphs = LossGraphs(model_passes(wide, loss, listed), held, with_outputs=set(chosen) != {"hessian"})
        settings: dict[str, Any] = {"seed": seed, "dtype": common_dtype(held)}
        spectra = []
        for operator in chosen:
            product = on_parts(partial(graphs.apply, operator), held)
            if operator == "hessian":
                _require_symmetry(product, dimension, **settings)
            top = top_eigenpairs(product, dimension, min(eigenvalues, dimension - 1), **settings)
            density = spectral_density(product, dimension, probes=probes, steps=lanczos_steps, **settings)
            spectra.append(OperatorSpectrum(operator, top.values, density, top.vectors))
        gradient = {name: graphs.gradient(name) for name in held}
        return ModelCurvature(
            graphs.loss,
            float(torch.cat([g.flatten() for g in gradient.values()]).norm()),
            sum(graphs.counts),
            {name: tuple(p.shape) for name, p in held.items()},
            tuple(spectra),
            None if trained is None else _update(graphs, trained[0], gradient, lr=trained[1], seed=seed),
            _noise(graphs, spectra[0]),
        )


def _operators(wanted: Sequence[Operator] | None, batches: Sequence[Batch], loss: Loss | None) -> tuple[Operator, ...]:
    if wanted is not None and not wanted:
        raise ProbeError(f"operators is empty; give some of {', '.join(OPERATORS)}.")
    for name in wanted or ():
        require_choice("operator", name, OPERATORS)
    if has_outputs(batches, loss):
        return tuple(dict.fromkeys(wanted or OPERATORS))
    if others := [name for name in wanted or () if name != "hessian"]:
        raise ProbeError(
            f"{', '.join(others)} cannot be had from a loss of (model, batch), which hides the model's output; give "
            "pairs (input, target) and a loss of (output, target), or operators=['hessian']."
        )
    return ("hessian",)


def _require_symmetry(product: Product, dimension: int, *, seed: int, dtype: np.dtype) -> None:
    """Detect kernels whose backward pass torch silently treats as constant.

    Raises:
        ProbeError: if xᵀHy and yᵀHx differ.
    """
    x, y = np.random.default_rng(seed).standard_normal((2, dimension)).astype(dtype)
    hx, hy = product(x), product(y)
    scale = np.linalg.norm(x) * np.linalg.norm(hy) + np.linalg.norm(y) * np.linalg.norm(hx)
    if abs(x @ hy - y @ hx) > _ASYMMETRY * scale / dimension**0.5:
        raise ProbeError(
            f"the Hessian is not symmetric (xᵀHy = {x @ hy:.4g}, yᵀHx = {y @ hx:.4g}): some kernel of the model, such "
            "as fused attention, has a backward pass that torch cannot differentiate. Load the model with "
            "attn_implementation='eager'."
        )


def _trained(optimizer: torch.optim.Optimizer, model: nn.Module, names: Sequence[str]) -> tuple[FrozenOptimizer, float]:
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper
    own = {p for group in inner.param_groups for p in group["params"]}
    held = {name: p for name, p in model.named_parameters() if name in set(names) and p in own}
    if not held:
        raise ProbeError("the optimizer has none of the chosen parameters; give the one that trains this model.")
    return FrozenOptimizer.trained(inner, held), max(float(group["lr"]) for group in inner.param_groups)


def _update(
    graphs: LossGraphs, frozen: FrozenOptimizer, gradient: Mapping[str, Tensor], *, lr: float, seed: int
) -> UpdateCurvature:
    own = {name: gradient[name] for name in frozen.names}
    frozen.observe(own)
    if not any(bool(u.any()) for u in frozen.directions.values()):
        frozen.observe(own)  # the first step of SOAP only sets its basis
    u = {name: frozen.directions[name].to(gradient[name].dtype) for name in own}
    square = _inner(u, u)
    if not (np.isfinite(square) and square > 0):
        raise ProbeError(f"the optimizer's next update has the squared norm {square}; look at its state and rates.")
    curvature = _inner(u, graphs.apply("hessian", u)) / square
    try:
        roots = {name: metric_root(frozen, name) for name in own}
    except ValueError as problem:
        return UpdateCurvature(type(frozen.optimizer).__name__, lr, curvature, float("nan"), str(problem))
    held = {name: graphs.parameters[name] for name in own}

    def whitened(x: dict[str, Tensor]) -> dict[str, Tensor]:
        image = graphs.apply("hessian", {name: roots[name](part) for name, part in x.items()})
        return {name: roots[name](part) for name, part in image.items()}

    dimension = sum(p.numel() for p in held.values())
    top = top_eigenpairs(on_parts(whitened, held), dimension, 1, seed=seed, dtype=common_dtype(held))
    return UpdateCurvature(type(frozen.optimizer).__name__, lr, curvature, float(top.values[0]))


def _inner(x: Mapping[str, Tensor], y: Mapping[str, Tensor]) -> float:
    return sum(float((x[name].double() * y[name].double()).sum()) for name in x)


def _noise(graphs: LossGraphs, spectrum: OperatorSpectrum) -> NoiseScale | None:
    """Noise of the batches as large as the first one, inside and outside the top eigenspace."""
    size = graphs.counts[0]
    parts = zip(graphs.counts, graphs.batch_gradients(), strict=True)
    rows = [torch.cat([g.flatten() for g in part.values()]).double() for count, part in parts if count == size]
    if len(rows) < 2:
        return None
    gradients = torch.stack(rows)
    basis = torch.as_tensor(spectrum.vectors).to(gradients)
    sharp = gradients @ basis
    found = parts_noise(spectrum.operator, sharp, gradients - sharp @ basis.mT)
    return replace(found, sharp=found.sharp * size, flat=found.flat * size)
