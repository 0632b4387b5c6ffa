"""Measured updates against ones computed by hand."""

import pytest
import torch

from lite import SOAPLITE, MuonLITE, param_groups
from lite.muon_settings import sharp_rank
from rishd.pretraining.config_files import make_config
from rishd.pretraining.models import build_model, model_config
from rishd.pretraining.updates import UpdateNorms
from tests.rishd.runs import run, tiny


def test_norms_and_shares_are_those_of_the_step():
    config = make_config({"data": {"vocab_size": 320}})
    made = model_config(config.model, tokenizer=None, vocab_size=320, sequence_length=16)
    model = build_model(config, made)
    optimizer = MuonLITE(param_groups(model), 0.01, weight_decay=0.0, ns_dtype="float32")
    updates = UpdateNorms(2)
    for step in (1, 2, 3):
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        updates.before(optimizer, step)
        optimizer.step()
        updates.after(optimizer)
        found = updates.read()
        if step != 2:
            assert found == {}
            continue
        moved = {name: (p.detach() - before[name]) / 0.01 for name, p in model.named_parameters()}
        norms = [d for name, d in moved.items() if "norm" in name]
        assert found["update_rms/norm"] == pytest.approx(torch.cat(norms).square().mean().sqrt().item(), rel=1e-4)
        sharp = whole = 0.0
        for name, p in model.named_parameters():
            if "proj" in name:
                basis = optimizer.state[p]["subspace"][:, : sharp_rank(0.1, p)]
                sharp += (moved[name] @ basis).square().sum().item()
                whole += moved[name].square().sum().item()
        assert found["sharp_share/matrix"] == pytest.approx(sharp / whole, rel=1e-4)
        # (1 + β₁)² on a tenth of the directions against χ²(1 + β₂)² on the others, for gradients without structure.
        assert found["sharp_share/matrix"] == pytest.approx(0.1 * 0.75**2 / (0.9 * 16), rel=0.5)
        assert 0.0 < found["sharp_share/embedding"] < 1.0


@pytest.mark.parametrize("chi", [1.0, 2.0])
def test_shares_of_soap_are_those_in_its_eigenbasis(chi):
    torch.manual_seed(0)
    w = torch.nn.Parameter(torch.zeros(6, 10))
    optimizer = SOAPLITE([w], 0.01, weight_decay=0.0, chi=chi, beta_flat=0.0, sharp_fraction=0.2)
    updates = UpdateNorms(1)
    scales = torch.logspace(0, -2, 10)
    for step in range(1, 40):
        w.grad = torch.randn(6, 10) * scales
        before = w.detach().clone()
        updates.before(optimizer, step)
        optimizer.step()
        updates.after(optimizer)
        found = updates.read()
    if chi == 1.0:  # the thresholds do not move
        assert not any(name.startswith("sharp_share") for name in found)
        return
    state = optimizer.state[w]
    moved = state["left_basis"].mT @ (w.detach() - before) @ state["right_basis"]
    level = state["v"] / state["v"].mean()
    mask = ((level - state["lo"]) / (state["hi"] - state["lo"])).clamp(0, 1)
    assert 0.1 < mask.mean() < 0.3
    share = (mask * moved.square()).sum() / moved.square().sum()
    assert found["sharp_share/matrix"] == pytest.approx(share.item(), rel=1e-4)


@pytest.mark.parametrize("name", ["adamw", "soap-lite"])
def test_runs_log_them_beside_the_loss(text, tmp_path, name):
    result, _ = run(tiny(text, {"optimizer.name": name, "logging.updates_every": 2}), tmp_path / "run")
    group = "all" if name == "adamw" else "matrix"
    assert [step for step, _ in result.series(f"update_rms/{group}")] == [2, 4, 6]
    assert all(0.05 < value < 5 for _, value in result.series(f"update_rms/{group}"))
    quiet, _ = run(tiny(text, {"optimizer.name": name, "logging.updates_every": 0}), tmp_path / "quiet")
    assert quiet.series("loss") == result.series("loss")
    assert quiet.series(f"update_rms/{group}") == []
