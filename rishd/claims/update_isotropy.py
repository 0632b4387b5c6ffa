"""Claim C14: how evenly updates spread over the Hessian's directions, and what the momentum's mask covers of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rishd.claims.evidence import Bound, Curve, Evidence, Measurement, Panel
from rishd.studies.alignment import OPTIMIZERS, AlignmentStudy, alignment_study

_TRAININGS = (2, 12)  # fewest and most
_RANDOM = 1.0 / 3.0  # isotropy of a random direction


def update_isotropy(rng: np.random.Generator, instances: int) -> Sequence[Evidence | Panel]:
    r"""Isotropy of updates and alignment of the momentum with the Hessian, on a tiny transformer.

    Statement: let :math:`I = (\sum_i s_i)^2/(p\sum_i s_i^2)` of the squared components :math:`s_i` along the
    Hessian's eigenvectors, :math:`\frac{1}{3}` for a random direction. Updates of Muon and SOAP have a larger one
    than those of SGD, and LITE's a larger one than those of Muon, its base; and the momentum's right singular space
    covers more of the matrices' top Hessian eigenspaces than a random one does, on average over the matrices.

    Hypotheses: one-block transformers on Markov chains, trained by AdamW from random starts, after 10 and 60 steps.

    Proof: none.

    Check: the study `rishd study alignment` with random corpora and starts. An instance is a whole training, so there
    are at most 12, and no adversary; each counts with its worst stage.

    Finding: Muon and SOAP are not nearly isotropic here, Muon hardly more than AdamW; it is LITE that comes near. And a
    sixth of the matrices is covered less than by chance.

    Source: motivation and Fig. 2 of arXiv:2602.22681; measured here.
    """
    count = int(np.clip(instances // 100, *_TRAININGS))
    studies = [alignment_study(quick=True, seed=int(seed)) for seed in rng.integers(0, 2**31, count)]
    isotropy = np.array(
        [[[study.update(name, step).isotropy for name in OPTIMIZERS] for step in study.steps] for study in studies]
    )  # (trainings, stages, optimizers)
    of = {name: isotropy[..., k] for k, name in enumerate(OPTIMIZERS)}
    scores = np.array(
        [
            [[row.score / row.chance for row in study.coverage if row.step == step] for step in study.steps]
            for study in studies
        ]
    )
    return [
        _bound("isotropy of SGD over that of Muon or SOAP, the lower", of["SGD"], np.minimum(of["Muon"], of["SOAP"])),
        _bound("isotropy of Muon over LITE's", of["Muon"], of["LITE"]),
        _bound(
            "chance over the mask's coverage of the top eigenspaces, mean of the matrices",
            np.ones(scores.shape[:2]),
            scores.mean(-1),
        ),
        *(
            Measurement(f"isotropy of {name} over a random direction's", of[name].mean(-1) / _RANDOM)
            for name in OPTIMIZERS
        ),
        Measurement("isotropy of Muon over AdamW's", (of["Muon"] / of["AdamW"]).mean(-1)),
        Measurement("share of the matrices covered less than by chance", (scores < 1.0).mean(axis=(1, 2))),
        _panel(studies),
    ]


def _bound(name: str, value: np.ndarray, limit: np.ndarray) -> Bound:
    """A bound on every stage, a training at a time: the worst stage counts."""
    worst, trainings = (value / limit).argmax(-1), np.arange(len(value))
    return Bound(name, value[trainings, worst], limit[trainings, worst])


def _panel(studies: Sequence[AlignmentStudy]) -> Panel:
    """Update size by rank of the eigenvalue at the last stage, mean of the trainings."""
    last = studies[0].steps[-1]
    curves = []
    for name in OPTIMIZERS:
        size = np.mean([study.update(name, last).size for study in studies], axis=0)
        curves.append(Curve(name, (np.arange(len(size)) + 0.5) / len(size), size))
    curves.append(Curve("isotropic", np.array([0.0, 1.0]), np.ones(2), "reference"))
    return Panel(
        f"Updates after {last} steps, mean of {len(studies)} trainings",
        "rank of the Hessian's eigenvalue, sharpest first",
        "root mean square component, times √p",
        tuple(curves),
        log="y",
    )
