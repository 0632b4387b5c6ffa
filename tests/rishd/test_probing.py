"""The probe against dense Hessians of a tiny model in float64 (transformers still computes norms in float32)."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import functional_call
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from discretizations.certificate import block_curvatures
from discretizations.stability import descent_limit, stable_limit
from examples.factored_moment import FactoredLITE
from examples.shampoo_lite import ShampooLITE
from lite import param_groups
from rishd.commands.application import app
from rishd.pretraining.blocks import make_collator
from rishd.pretraining.config import OptimizerConfig
from rishd.pretraining.config_files import load_config
from rishd.pretraining.optimizers import build_optimizer
from rishd.pretraining.run import train
from rishd.probing.block_hessian import BlockHessian
from rishd.probing.frozen import FrozenOptimizer, geometry
from rishd.probing.gradient_noise import noise_scale
from rishd.probing.lanczos import spectral_density, spectral_measure, top_eigenpairs
from rishd.probing.probe import chosen_blocks, mean_gradient
from rishd.probing.settings import ProbeSettings
from rishd.probing.split_curvature import split_curvature
from rishd.probing.trained_model import passes

TALL, WIDE = "model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.down_proj.weight"
NORM = "model.layers.0.input_layernorm.weight"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=11,
        hidden_size=8,
        intermediate_size=10,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        attn_implementation="eager",
        use_cache=False,
    )
    model = LlamaForCausalLM(config).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model


@pytest.fixture(scope="module")
def ids():
    return torch.randint(0, 11, (6, 9), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def hessian(model, ids):
    return BlockHessian(model, passes(inputs_of(ids), 0, 6, 4), [TALL, WIDE, NORM])  # of four and two sequences


def inputs_of(ids):
    return {"input_ids": ids, "labels": ids}


def dense(model, ids, name):
    def loss(w):
        return functional_call(model, {name: w}, kwargs={"input_ids": ids, "labels": ids}).loss

    p = model.get_parameter(name).numel()
    return torch.autograd.functional.hessian(loss, model.get_parameter(name).detach()).reshape(p, p).numpy()


@pytest.fixture(scope="module")
def memories(model, ids):
    made = {
        name: FrozenOptimizer.configured(model, OptimizerConfig(name=name, settings=settings))
        for name, settings in (("muon", {"ns_steps": 0}), ("soap", {"precondition_frequency": 99}), ("adamw", {}))
    }
    for k in range(4):
        gradients = mean_gradient(model, [inputs_of(ids[k : k + 2])])
        for memory in made.values():
            memory.observe(gradients)
    return made


@pytest.mark.parametrize("name", [TALL, NORM])
def test_products_are_those_of_the_dense_hessian(model, ids, hessian, name):
    matrix = dense(model, ids, name)
    product = hessian.product(name)
    found = np.stack([product(row) for row in np.eye(len(matrix))])
    assert np.allclose(found, matrix, atol=1e-6 * np.abs(matrix).max())
    loss = model(input_ids=ids, labels=ids).loss
    assert hessian.loss == pytest.approx(loss.item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, model.get_parameter(name))
    assert torch.allclose(hessian.gradient(name), gradient, atol=1e-6 * float(gradient.abs().max()))


def test_top_eigenpairs_are_the_dense_ones(model, ids, hessian):
    values = np.linalg.eigvalsh(dense(model, ids, TALL))[::-1]
    found = top_eigenpairs(hessian.product(TALL), 80, 5, tolerance=1e-10)
    assert np.allclose(found.values, values[:5], rtol=1e-6)
    assert np.allclose(found.vectors.T @ found.vectors, np.eye(5), atol=1e-8)


@given(
    eigenvalues=st.lists(st.floats(-10, 10, allow_subnormal=False), min_size=2, max_size=12),
    steps=st.integers(2, 12),
    seed=st.integers(0, 99),
)
def test_quadrature_has_the_moments_of_the_vector(eigenvalues, steps, seed):
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(len(eigenvalues), len(eigenvalues))))[0]
    matrix = (basis * np.array(eigenvalues)) @ basis.T
    u = rng.normal(size=len(eigenvalues))
    measure = spectral_measure(lambda v: matrix @ v, u, steps)
    scale = max(1.0, np.abs(eigenvalues).max())
    unit = u / np.linalg.norm(u)
    for power in range(min(4, 2 * len(measure.nodes))):
        exact = unit @ np.linalg.matrix_power(matrix, power) @ unit
        assert measure.weights @ measure.nodes**power == pytest.approx(exact, abs=1e-5 * scale**power)
    assert measure.nodes.min() >= min(eigenvalues) - 1e-8 * scale
    assert measure.nodes.max() <= max(eigenvalues) + 1e-8 * scale


def test_density_of_a_diagonal_matrix_has_its_trace(rng):
    diagonal = rng.normal(size=40)
    density = spectral_density(lambda v: diagonal * v, 40, probes=3, steps=8)
    assert density.weights.sum() == pytest.approx(1.0, abs=1e-10)
    assert density.weights @ density.nodes == pytest.approx(diagonal.mean(), abs=1e-10)  # exact for ±1 vectors


def test_density_counts_the_eigenvalues(model, ids, hessian):
    values = np.linalg.eigvalsh(dense(model, ids, TALL))
    density = spectral_density(hessian.product(TALL), 80, probes=40, steps=25)
    for edge in np.quantile(values, (0.1, 0.9)):
        share = density.weights[density.nodes > edge].sum()
        assert share == pytest.approx((values > edge).mean(), abs=0.08)


def test_bad_vectors_and_counts_are_refused():
    with pytest.raises(ValueError, match="norm 0"):
        spectral_measure(lambda v: v, np.zeros(3), 2)
    with pytest.raises(ValueError, match="count = 3"):
        top_eigenpairs(lambda v: v, 3, 3)


def test_the_loss_is_that_of_training(model):
    """Padding does not count, and all other tokens have the same weight."""
    blocks = np.array([[1, 2, 3, 0, 0, 0], [4, 5, 6, 7, 8, 0], [4, 3, 0, 0, 0, 0]])
    inputs = make_collator("truncate", 0)(list(blocks))
    documents = [torch.tensor([[1, 2, 3, 0]]), torch.tensor([[4, 5, 6, 7, 8, 0]]), torch.tensor([[4, 3, 0]])]
    counts = [ids.numel() - 1 for ids in documents]
    losses = [model(input_ids=ids, labels=ids).loss for ids in documents]
    expected = sum(count * loss for count, loss in zip(counts, losses, strict=True)) / sum(counts)
    hessian = BlockHessian(model, passes(inputs, 0, 3, 2), [TALL])
    assert hessian.loss == pytest.approx(float(expected.detach()), rel=1e-6)
    (gradient,) = torch.autograd.grad(expected, model.get_parameter(TALL))
    for found in (hessian.gradient(TALL), mean_gradient(model, passes(inputs, 0, 3, 2))[TALL]):
        torch.testing.assert_close(found, gradient, rtol=1e-5, atol=1e-8)


def test_frozen_optimizers_move_as_real_ones_and_stay(model, ids):
    import copy

    gradients = mean_gradient(model, [inputs_of(ids)])
    for name in ("adamw", "muon-lite"):
        frozen = FrozenOptimizer.configured(model, OptimizerConfig(name=name))
        moved = copy.deepcopy(model)
        real = build_optimizer(OptimizerConfig(name=name, lr=1.0, weight_decay=0.0), moved)
        for p_name, p in moved.named_parameters():
            p.grad = gradients[p_name].clone()
        real.step()
        frozen.observe(gradients)
        for p_name, p in moved.named_parameters():
            assert torch.allclose(frozen.directions[p_name], model.get_parameter(p_name) - p, atol=1e-12)
        before = frozen.directions[TALL]
        frozen.observe(gradients)
        # AdamW's bias-corrected direction of a constant gradient is constant where nothing has moved.
        assert name != "adamw" or torch.allclose(frozen.directions[TALL], before, atol=1e-6)


@pytest.mark.parametrize("name", [TALL, WIDE])
def test_muon_geometry_is_the_optimizers_metric(memories, name):
    metric = geometry(memories["muon"], name, 0.3)
    theta = 0.95
    covector = memories["muon"].state(name)["momentum"] + (1 - theta) / theta * memories["muon"].gradients[name]
    u = memories["muon"].directions[name]
    assert torch.allclose(metric.root(metric.root(covector)), u, atol=1e-10 * float(u.abs().max()))
    assert (metric.alpha, metric.beta, metric.gain) == pytest.approx((0.05, 1 / 0.95, 0.05))
    check_commuting_projector(metric, covector)


@pytest.mark.parametrize("optimizer", ["soap", "adamw"])
def test_adam_geometry_is_the_optimizers_metric(memories, optimizer):
    memory = memories[optimizer]
    metric = geometry(memory, TALL, 0.3)
    assert metric.beta == 0
    theta = 1 - metric.alpha
    m = memory.state(TALL)["momentum" if optimizer == "soap" else "exp_avg"]
    if optimizer == "soap":
        m = memory.state(TALL)["left_basis"] @ m @ memory.state(TALL)["right_basis"].mT
    steps = 3 if optimizer == "soap" else 4
    raised = metric.root(metric.root(m)) / (1 - theta**steps)
    assert torch.allclose(raised, memory.directions[TALL], rtol=1e-4, atol=1e-6)
    check_commuting_projector(metric, m)


def test_geometry_of_a_preconditioner_of_ones_own(model, ids):
    def frozen(cls):
        def optimizer(own):
            return cls(param_groups(own, matrix_rule=cls.rule), lr=1.0, weight_decay=0.0, chi=1.0)

        made = FrozenOptimizer(model, optimizer)
        for k in range(4):
            made.observe(mean_gradient(model, [inputs_of(ids[k : k + 2])]))
        return made

    base = frozen(FactoredLITE)
    metric = geometry(base, TALL, 0.3)
    state = base.state(TALL)
    m, u = state["momentum"], base.directions[TALL]
    assert torch.allclose(metric.root(metric.root(m)) / state["momentum_mass"], u, rtol=1e-9, atol=0)
    v = torch.outer(state["rows"], state["columns"])
    largest = v.flatten().topk(24).indices
    assert torch.equal((metric.flat(torch.ones_like(v)) == 0).flatten().nonzero().flatten(), largest.sort().values)
    check_commuting_projector(metric, m)
    with pytest.raises(ValueError, match=r"metric of 'kronecker-root' is not diagonal"):
        geometry(frozen(ShampooLITE), TALL, 0.3)


def check_commuting_projector(metric, x):
    flat = metric.flat(x)
    assert torch.allclose(metric.flat(flat), flat, atol=1e-12)
    assert torch.allclose(metric.flat(metric.root(x)), metric.root(flat), atol=1e-9 * float(metric.root(x).norm()))


def test_noise_scale_is_that_of_gaussian_gradients_and_does_not_depend_on_the_number_of_batches(memories):
    """Signal of a size and white noise of another, in whitened coordinates: the ratio of their squares."""
    metric = geometry(memories["muon"], TALL, 0.3)
    source = torch.Generator().manual_seed(0)
    signal = torch.randn(10, 8, generator=source, dtype=torch.float64)

    def unwhitened(x):  # F^{1/2}x, by what F^{-1/2} does to a basis
        basis = torch.eye(80, dtype=x.dtype).reshape(80, 10, 8)
        matrix = torch.stack([metric.root(each).flatten() for each in basis], dim=1)
        return torch.linalg.solve(matrix, x.flatten()).reshape(x.shape)

    count, size = 400, 3.0
    noise = torch.randn(count, 10, 8, generator=source, dtype=torch.float64)
    gradients = [unwhitened(signal + size * each) for each in noise]
    found, fewer = (noise_scale("muon-lite", some, metric) for some in (gradients, gradients[:200]))
    flat = metric.flat(signal)
    share = float((flat**2).sum() / (signal**2).sum())
    entries = 80 * (1 - metric.chance)
    for noisy in (found, fewer):
        assert noisy.flat == pytest.approx(size**2 * entries / float((flat**2).sum()), rel=0.15)
        assert noisy.sharp == pytest.approx(size**2 * (80 - entries) / float(((signal - flat) ** 2).sum()), rel=0.25)
        assert noisy.sharp_share == pytest.approx(1 - share, abs=0.05)
    alone = noise_scale("muon-lite", [gradients[0], -gradients[0]], metric)
    assert alone.flat == alone.sharp == float("inf")


def test_geometry_of_parameters_without_one_is_none(memories):
    assert geometry(memories["muon"], "lm_head.weight", 0.1) is None
    assert geometry(memories["soap"], "lm_head.weight", 0.1) is None


@pytest.mark.parametrize("optimizer", ["muon", "soap"])
def test_split_curvature_is_the_dense_one(model, ids, hessian, memories, optimizer):
    metric = geometry(memories[optimizer], TALL, 0.3)
    p = 80
    shape = model.get_parameter(TALL).shape
    unit = torch.eye(p, dtype=torch.float64).reshape(p, *shape)
    root = torch.stack([metric.root(x).reshape(-1) for x in unit]).numpy()
    flat = torch.stack([metric.flat(x).reshape(-1) for x in unit]).numpy()
    majorant = root @ dense(model, ids, TALL) @ root
    values, vectors = np.linalg.eigh(np.eye(p) - flat)
    sharp = vectors[:, values > 0.5]
    assert sharp.shape[1] == pytest.approx(metric.chance * p)
    upper = block_curvatures(majorant, sharp)
    top = top_eigenpairs(hessian.product(TALL), p, 4, tolerance=1e-10)
    lr = 0.3 * float(descent_limit(metric.alpha, metric.beta)) / (metric.gain * float(upper[0]))
    split = split_curvature(optimizer, hessian, TALL, metric, top.vectors, lr=lr)
    assert (split.sharp_bound, split.flat_bound) == pytest.approx(upper, rel=2e-3)
    assert split.coverage == pytest.approx(np.mean(((sharp.T @ top.vectors) ** 2).sum(0)), abs=1e-8)
    eta = lr * metric.gain
    for allowance, limit in zip(split.allowances, (descent_limit, stable_limit), strict=True):
        within = float(limit(metric.alpha, metric.beta))
        assert allowance.largest_lr * metric.gain * split.sharp == pytest.approx(within)
        balance = (within / eta - split.sharp) / split.coupling
        flat_bound = split.flat + split.coupling / balance
        assert eta * allowance.chi_at_lr * flat_bound == pytest.approx(limit(metric.alpha, allowance.beta_flat))
    # C9 bounds the whole flat speed, so that every β₂ gives the same speed-up.
    speed = split.allowances[0].chi * (1 + metric.alpha * split.allowances[0].beta_flat)
    assert speed / (1 + metric.alpha * metric.beta) == pytest.approx(split.speedup)


def test_blocks_are_chosen_by_pattern_or_from_the_middle(model):
    assert chosen_blocks(model, ["*.up_proj.weight"]) == [f"model.layers.{k}.mlp.up_proj.weight" for k in (0, 1)]
    assert len(chosen_blocks(model, None)) == 7
    assert all(".layers.1." in name for name in chosen_blocks(model, None))
    with pytest.raises(ValueError, match=r"no parameter is called 'up\*'"):
        chosen_blocks(model, ["up*"])


@pytest.mark.parametrize("changes", [{"tokens": 1}, {"eigenvalues": 0}, {"gradients": 1}, {"sharp_fraction": 1.0}])
def test_bad_settings_are_refused(changes):
    with pytest.raises(ValueError, match=f"{next(iter(changes))} = "):
        ProbeSettings(**changes)


def test_command_probes_a_run_and_refuses_other_folders(tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("RISHD_CACHE", str(tmp_path_factory.mktemp("cache")))
    text = tmp_path / "text"
    text.mkdir()
    for i in range(60):
        lines = "\n".join(f"river {i} flows past valley {j} with height {i * j}" for j in range(30))
        (text / f"{i:02}.txt").write_text(lines)
    settings = ("data.vocab_size=320", "data.sequence_length=16", "training.batch_size=2", "training.steps=3")
    config = load_config(None, (*settings, "model.preset=1M", f"data.paths=['{text}']", "checkpoints.every=2"))
    train(config, tmp_path / "run")
    arguments = ["--block", "*.2.*.k_proj.weight", "--tokens", "320", "--eigenvalues", "2", "--probes", "1"]
    arguments += ["--lanczos-steps", "4", "--gradients", "2", "--noise-batches", "2"]
    run = CliRunner().invoke(app, ["probe", str(tmp_path / "run"), *arguments, "--format", "json"])
    assert run.exit_code == 0, run.output
    data = json.loads(run.stdout)
    assert data["step"] == 3
    (block,) = data["blocks"]
    assert len(block["eigenvalues"]) == 2
    assert [update["optimizer"] for update in block["updates"]] == ["adamw", "muon", "muon-lite", "soap", "soap-lite"]
    assert {split["optimizer"] for split in block["splits"]} == {"muon-lite", "soap-lite"}
    assert [noise["optimizer"] for noise in block["noise"]] == ["muon-lite", "soap-lite"]
    names = {path.name for path in (tmp_path / "run" / "probe").iterdir()}
    assert names == {"probe.json", "spectra.png", "updates.png", "certificate.png"}
    table = CliRunner().invoke(app, ["probe", str(tmp_path / "run" / "checkpoint-2"), *arguments])
    assert table.exit_code == 0, table.output
    assert "step 2 of muon-lite" in table.stdout
    refused = CliRunner().invoke(app, ["probe", str(tmp_path)])
    assert "is not a run of rishd pretrain" in str(refused.exception)
