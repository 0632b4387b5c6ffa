"""How far MuonLITE's parameters move from those of the exact algorithm in float64.

Gradients are a slowly rotating signal of rank 8 plus noise, as in ``tests/lite``. ``accuracy_20_steps`` compares 20
steps of the tracked mask with the same Newton–Schulz polynomial and the mask by SVD in float64, for k at the rank of
the signal and for the default r = 0.1, which puts k into the noise. ``parity_threshold_50_steps`` compares 50 steps of
the published soft mask in float32 with the published formulas in float64 (``tests/lite/reference.py``).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from discretizations.matrices import polar
from discretizations.matrices.polar import polar_express, polar_express_coefficients
from lite import MuonLITE
from tests.lite.reference import MuonLITEReference

THREADS, LR, RANK, NOISE, TURN = 2, 0.02, 8, 0.3, 0.1
SHAPES = ((256, 256), (256, 688), (688, 256))


def gradients(shape: tuple[int, int], steps: int, seed: int = 0) -> Iterator[Tensor]:
    source = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(s, generator=source, dtype=torch.float64) for s in ((shape[0], RANK), (RANK, shape[1])))
    for _ in range(steps):
        left = left + TURN * torch.randn(left.shape, generator=source, dtype=torch.float64)
        yield left @ right + NOISE * torch.randn(shape, generator=source, dtype=torch.float64)


def movement(shape: tuple[int, int], dtype: torch.dtype, gs: list[Tensor], **options: Any) -> Tensor:
    start = 0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    p = nn.Parameter(start.to(dtype))
    begun, optimizer = p.detach().clone(), MuonLITE([p], LR, **options)
    for g in gs:
        p.grad = g.to(dtype)
        optimizer.step()
    return (p.detach().double() - begun.double()).clone()


def exact_movement(shape: tuple[int, int], gs: list[Tensor], half: bool, **options: Any) -> Tensor:
    """Movement in float64, optionally with the coefficients that half precision uses for this shape."""
    safety = []

    def coefficients(steps: int, **keywords: float) -> list[tuple[float, float, float]]:
        safety.append(keywords["safety"])
        return polar_express_coefficients(steps, **(keywords | ({"safety": safety[0]} if half else {})))

    with patch.object(polar, "polar_express_coefficients", coefficients):
        if half:
            polar_express(torch.zeros(shape), dtype=torch.bfloat16)
        return movement(shape, torch.float64, gs, mask="exact", **options)


def parity(shape: tuple[int, int]) -> float:
    gs = list(gradients(shape, 50))
    reference = MuonLITEReference(
        (0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)).numpy(),
        lr=LR,
        orthogonalize=lambda x: polar_express(torch.as_tensor(x), steps=6).numpy(),
    )
    start = reference.w.copy()
    for g in gs:
        reference.step(g.numpy())
    ours = movement(shape, torch.float32, gs, mask="threshold", ns_dtype="float32").numpy()
    return float(np.linalg.norm(ours - (reference.w - start)) / np.linalg.norm(reference.w - start))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", type=Path, help="write rows {name, value, unit} to this file")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    print(f"torch {torch.__version__}; signal of rank {RANK}, noise {NOISE} per entry, turn {TURN} per step, lr {LR}")
    rows: list[dict[str, Any]] = []

    def row(name: str, value: float) -> None:
        rows.append({"name": name, "value": value, "unit": "relative"})
        print(f"  {name:64} {value:.3g}", flush=True)

    for shape in SHAPES:
        gs = list(gradients(shape, 20))
        text = "x".join(map(str, shape))
        for label, r in (("k=8", RANK / min(shape)), ("r=0.1", 0.1)):
            references = {half: exact_movement(shape, gs, half, sharp_fraction=r) for half in (False, True)}
            for name, dtype, ns in (
                ("fp32", torch.float32, "float32"),
                ("fp32_bf16_products", torch.float32, "bfloat16"),
                ("bf16", torch.bfloat16, "bfloat16"),
            ):
                error, reference = {}, references[ns == "bfloat16"]
                for mask in ("subspace", "exact"):
                    moved = movement(shape, dtype, gs, mask=mask, sharp_fraction=r, ns_dtype=ns)
                    error[mask] = float((moved - reference).norm() / reference.norm())
                row(f"accuracy_20_steps/{text}/{label}/{name}", error["subspace"])
                row(f"accuracy_20_steps_of_rounding_alone/{text}/{label}/{name}", error["exact"])
            svd = movement(shape, torch.float64, gs, mask="exact", sharp_fraction=r, ns_steps=0)
            for half, reference in references.items():
                distance = float((reference - svd).norm() / svd.norm())
                row(f"distance_of_polynomial_to_svd/{text}/{label}/{'bf16' if half else 'fp32'}", distance)
        row(f"parity_threshold_50_steps/{text}", parity(shape))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
