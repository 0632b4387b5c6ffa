"""Curvature of any model against dense matrices in float64, and its absence of effects on training."""

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian, jacrev
from torch.nn import functional
from torch.utils._pytree import tree_flatten
from transformers import LlamaConfig, LlamaForCausalLM, TrainerState

from examples.trainer import make_trainer
from lite import (
    SOAP,
    SOAPLITE,
    AdamWLITE,
    Lion,
    LionLITE,
    Muon,
    MuonLITE,
    NorMuon,
    Shampoo,
    ShampooLITE,
    param_groups,
)
from riemannian_ode.stages import TakenIn
from rishd import CurvatureCallback, CurvatureRecord, ProbeError, probe_model
from rishd.json_lines import read_json_lines
from rishd.probing.evaluation import evaluating
from rishd.probing.frozen import FrozenOptimizer
from rishd.probing.loss_graphs import OPERATORS, LossGraphs, on_parts
from rishd.probing.model_passes import model_passes
from rishd.probing.optimizer_metric import metric_root

QUICK = {"eigenvalues": 2, "probes": 1, "lanczos_steps": 3}
ONE = QUICK | {"operators": ["hessian"]}


def assert_same(found, expected):
    (found, spec), (expected, expected_spec) = tree_flatten(found), tree_flatten(expected)
    assert spec == expected_spec
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


class Net(nn.Module):
    """Dropout, batch norm, a weight used twice, a frozen one and one that nothing uses."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.shared = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(4, 3)
        self.unused = nn.Parameter(torch.ones(2))
        self.norm.weight.requires_grad_(False)
        self.tied = self.shared

    def forward(self, x):
        x = self.norm(torch.tanh(self.first(x)))
        return self.last(self.drop(torch.tanh(self.tied(torch.tanh(self.shared(x))))))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().double().train()


@pytest.fixture
def data():
    torch.manual_seed(1)
    x, y = torch.randn(10, 3, dtype=torch.float64), torch.randint(0, 3, (10,))
    return [(x[:4], y[:4]), (x[4:8], y[4:8]), (x[8:], y[8:])]


def weights(model, names=None):
    return {name: p for name, p in model.named_parameters() if p.requires_grad and (names is None or name in names)}


def dense(function, parameters):
    """A function of the parameters' vector."""
    sizes = [p.numel() for p in parameters.values()]

    def of_vector(v):
        parts = zip(parameters.items(), v.split(sizes), strict=True)
        return function({name: part.reshape(p.shape) for (name, p), part in parts})

    return of_vector, torch.cat([p.detach().flatten() for p in parameters.values()])


def truth(outputs, loss, parameters):
    """Hessian, Gauss–Newton and Fisher by their definitions; outputs maps parameters to (n, classes)."""
    f, w = dense(outputs, parameters)
    out = f(w)
    j = jacrev(f)(w)
    slopes = torch.stack([jacrev(lambda v, i=i: loss(f(v), [i]))(w) for i in range(len(out))])
    middle = hessian(lambda z: loss(z, range(len(out))))(out)
    flat = j.reshape(out.numel(), -1)
    return {
        "hessian": hessian(lambda v: loss(f(v), range(len(out))))(w).detach().numpy(),
        "gauss-newton": (flat.mT @ middle.reshape(out.numel(), -1) @ flat).detach().numpy(),
        "fisher": (slopes.mT @ slopes / len(out)).detach().numpy(),
    }


def matrices(model, loss, batches, parameters):
    with evaluating(model):
        graphs = LossGraphs(model_passes(model, loss, batches), parameters, with_outputs=True)
    p = sum(x.numel() for x in parameters.values())
    return {
        name: np.stack([on_parts(lambda v, n=name: graphs.apply(n, v), parameters)(row) for row in np.eye(p)])
        for name in OPERATORS
    }


def net_truth(net, batches, loss, target):
    x = torch.cat([one for one, _ in batches])
    frozen = copy.deepcopy(net).eval()

    def outputs(w):
        return functional_call(frozen, w, (x,))

    return truth(
        outputs, lambda z, rows: loss(z[list(rows)] if len(z) > len(rows) else z, target[list(rows)]), weights(net)
    )


@pytest.mark.parametrize("kind", ["cross-entropy", "mse", "function"])
def test_operators_are_the_dense_ones(net, data, kind):
    loss = {
        "cross-entropy": nn.CrossEntropyLoss(),
        "mse": nn.MSELoss(),
        "function": lambda z, y: torch.nn.functional.huber_loss(z, y, delta=0.5),
    }[kind]
    if kind != "cross-entropy":
        data = [(x, functional.one_hot(y, 3).double()) for x, y in data]
    expected = net_truth(net, data, loss, torch.cat([y for _, y in data]))
    found = matrices(net, loss, data, weights(net))
    for name in OPERATORS:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-12)
    probed = probe_model(net, loss, data, eigenvalues=3, probes=1, lanczos_steps=4)
    for name in OPERATORS:
        values = np.linalg.eigvalsh(expected[name])[::-1]
        np.testing.assert_allclose(probed.spectrum(name).eigenvalues, values[:3], rtol=1e-2, atol=1e-9)
    vector = probed.eigenvector("hessian")
    assert {key: x.shape for key, x in vector.items()} == {key: tuple(p.shape) for key, p in weights(net).items()}
    top = np.concatenate([x.ravel() for x in vector.values()])
    assert top @ expected["hessian"] @ top == pytest.approx(probed.spectrum("hessian").eigenvalues[0], rel=1e-2)
    assert "vectors" not in json.dumps(probed.as_dict(), allow_nan=False)
    assert len(probed.table()) == 3
    assert probed.conclusion.startswith(f"Loss {probed.loss:.4g}")
    assert len(probed.plot().lines) == 6


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    sizes = {"hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=7, tie_word_embeddings=True, attn_implementation="sdpa", **sizes)
    return LlamaForCausalLM(config).double()


@pytest.fixture
def texts():
    ids = torch.randint(0, 7, (3, 5), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[0, 3:] = -100
    return [{"input_ids": ids[:1], "labels": labels[:1]}, {"input_ids": ids[1:], "labels": labels[1:]}]


def test_operators_of_a_language_model_count_tokens(llama, texts):
    names = ["model.embed_tokens.weight", "model.layers.0.mlp.gate_proj.weight"]  # tied, and below another SiLU
    ids, labels = (torch.cat([batch[key] for batch in texts]) for key in ("input_ids", "labels"))
    counted = labels[:, 1:] != -100
    targets = labels[:, 1:][counted]

    def outputs(w):
        return functional_call(llama, w, kwargs={"input_ids": ids, "use_cache": False}).logits[:, :-1][counted]

    def loss(z, rows):
        return functional.cross_entropy(z[list(rows)] if len(z) > len(rows) else z, targets[list(rows)])

    chosen = weights(llama, names)
    with evaluating(llama):
        expected = truth(outputs, loss, chosen)
    found = matrices(llama, None, texts, chosen)
    for name in OPERATORS:  # transformers computes norms in float32
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5 * np.abs(expected[name]).max())
    probed = probe_model(llama, None, texts, parameters=names, **QUICK)
    assert probed.examples == len(targets)
    own = probe_model(llama, lambda model, batch: model(**batch).loss, texts[1:], parameters=names, **QUICK)
    same = probe_model(llama, None, texts[1:], parameters=names, **ONE)
    assert [found.operator for found in own.spectra] == ["hessian"]
    np.testing.assert_allclose(own.spectra[0].eigenvalues, same.spectra[0].eigenvalues, rtol=1e-2)


def test_nothing_changes(net, data):
    net.drop.eval()  # modes of single modules stay
    optimizer = MuonLITE(param_groups(net), lr=0.01)
    for x, y in data:
        functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    before = copy.deepcopy((net.state_dict(), optimizer.state_dict(), [p.grad for p in net.parameters()]))
    modes, random = [m.training for m in net.modules()], torch.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()
    probe_model(net, nn.CrossEntropyLoss(), data, optimizer=optimizer, **QUICK)
    after = (net.state_dict(), optimizer.state_dict(), [p.grad for p in net.parameters()])
    assert_same(after, before)
    assert [m.training for m in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert (np.random.get_state()[1] == numpy_state).all()


BUILDERS = {
    "SGD": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1),
    "AdamW": lambda model: torch.optim.AdamW(model.parameters(), lr=0.1),
    "Muon": lambda model: Muon(param_groups(model), lr=0.1),
    "MuonLITE": lambda model: MuonLITE(
        param_groups(model),
        lr=0.1,
        chi=3.0,
        beta_sharp=0.0,
        beta_flat=0.0,
        ns_steps=0,
        mask="exact",
        sharp_fraction=0.4,
    ),
    "SOAP": lambda model: SOAP(param_groups(model, matrix_rule="soap"), lr=0.1, precondition_frequency=99),
    "SOAPLITE": lambda model: SOAPLITE(
        param_groups(model, matrix_rule="soap"), lr=0.1, chi=3.0, beta_flat=0.0, precondition_frequency=99
    ),
    "Shampoo": lambda model: Shampoo(param_groups(model, matrix_rule="shampoo"), lr=0.1),
    "ShampooLITE": lambda model: ShampooLITE(
        param_groups(model, matrix_rule="shampoo"), lr=0.1, chi=3.0, beta_flat=0.0, sharp_fraction=0.4
    ),
    "Shampoo, plain": lambda model: Shampoo(param_groups(model, matrix_rule="shampoo"), lr=0.1, grafts=False),
    "Lion": lambda model: Lion(model.parameters(), lr=0.1),
    "LionLITE": lambda model: LionLITE(model.parameters(), lr=0.1, chi=3.0, beta_flat=0.0, sharp_fraction=0.3),
    "AdamWLITE": lambda model: AdamWLITE(model.parameters(), lr=0.1, chi=3.0, sharp_fraction=0.3),
    "NorMuon": lambda model: NorMuon(param_groups(model, matrix_rule="normuon"), lr=0.1),
}


@pytest.fixture
def tall():
    """Matrices with more rows than columns, as NorMuon's metric needs."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 7)).double()


def trained(model, optimizer, data, steps=4):
    for k in range(steps):
        x, y = data[k % 2]
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", BUILDERS)
def test_metric_turns_the_covector_into_the_update(tall, data, name):
    optimizer = BUILDERS[name](tall)
    trained(tall, optimizer, data)
    named = dict(tall.named_parameters())
    frozen = FrozenOptimizer.trained(optimizer, named)
    gradients = dict(
        zip(
            named,
            torch.autograd.grad(functional.cross_entropy(tall(data[0][0]), data[0][1]), [*named.values()]),
            strict=True,
        )
    )
    frozen.observe(gradients)
    for key, g in gradients.items():
        state, group, u = frozen.state(key), frozen.group(key), frozen.directions[key]
        mass = float(state.get("momentum_mass", 1.0))
        if name == "SGD":
            covector = state["momentum_buffer"]
        elif name == "AdamW":
            covector, mass = state["exp_avg"], 1 - 0.9 ** float(state["step"])
        else:
            is_adamw = group["rule"] == "adamw" and frozen.optimizer.rule != "adamw"
            rule = frozen.optimizer.adamw_rule(group) if is_adamw else frozen.optimizer.update_rule(group, (5, 3))
            memory, preconditioner = dict(state), rule.preconditioner
            m, framed = memory.pop("momentum"), preconditioner.to_frame(state, g)
            lifted = m + rule.nesterov * framed
            covector = preconditioner.from_frame(memory, lifted)
            if preconditioner.is_linear:  # masks adapt in each step: this is the mask of the current memory
                u = rule.direct(TakenIn(m, memory, framed, lifted)).u / mass
        root = metric_root(frozen, key)
        torch.testing.assert_close(root(root(covector)) / mass, u, rtol=1e-6, atol=1e-7 * float(u.abs().max()))
        size = g.numel()
        matrix = torch.stack([root(x).flatten() for x in torch.eye(size, dtype=g.dtype).reshape(size, *g.shape)])
        torch.testing.assert_close(matrix, matrix.mT)
        assert torch.linalg.eigvalsh(matrix).min() > -1e-9 * matrix.abs().max()


@pytest.mark.parametrize("name", ["AdamW", "Muon", "NorMuon", "SOAP", "Shampoo", "Lion"])
def test_parameters_without_gradient_do_not_matter(tall, data, name):
    tall[0].unused = nn.Linear(4, 5, bias=False).double()
    optimizer = BUILDERS[name](tall)
    trained(tall, optimizer, data, steps=2)
    loss = nn.CrossEntropyLoss()
    update = probe_model(tall, loss, data, optimizer=optimizer, **ONE).update
    used = ["0.weight", "0.bias", "2.*", "4.*"]
    without = probe_model(tall, loss, data, optimizer=optimizer, parameters=used, **ONE).update
    assert update.metric_sharpness == pytest.approx(without.metric_sharpness, rel=2e-2)


def test_metric_of_parameters_that_are_several_matrices():
    torch.manual_seed(0)
    shapes = {"conv": (3, 2, 2, 2), "fused": (8, 5), "experts": (3, 4, 2)}
    parameters = {name: nn.Parameter(torch.randn(shape, dtype=torch.float64)) for name, shape in shapes.items()}
    groups = [
        {"params": [parameters["conv"]], "layout": "conv"},
        {"params": [parameters["fused"]], "blocks": (3, 5), "block_axis": -2},
        {"params": [parameters["experts"]], "layout": "experts"},
    ]
    frozen = FrozenOptimizer.trained(Muon(groups, lr=0.1, ns_steps=0), parameters)
    for _ in range(2):
        frozen.observe({name: torch.randn_like(p) for name, p in parameters.items()})
    for name, g in frozen.gradients.items():
        covector = frozen.state(name)["momentum"] + 0.05 / 0.95 * g
        root = metric_root(frozen, name)
        torch.testing.assert_close(root(root(covector)), frozen.directions[name])


@pytest.mark.parametrize("name", ["SGD", "AdamW", "MuonLITE"])
def test_sharpness_is_the_dense_one(tall, data, name):
    optimizer = BUILDERS[name](tall)
    for group in optimizer.param_groups[1:]:
        group["lr"] = 0.05  # relative to the largest
    trained(tall, optimizer, data)
    named = dict(tall.named_parameters())
    loss = nn.CrossEntropyLoss()
    update = probe_model(tall, loss, data, optimizer=optimizer, operators=["fisher"], **QUICK).update
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    f, w = dense(lambda parameters: loss(functional_call(tall, parameters, (x,)), y), named)
    h = hessian(f)(w)
    twin, moved = copy.deepcopy((optimizer, tall))
    for group in twin.param_groups:
        group["weight_decay"] = 0.0
    loss(moved(x), y).backward()
    twin.step()
    u = torch.cat([(p - q).detach().flatten() for p, q in zip(tall.parameters(), moved.parameters(), strict=True)])
    assert update.directional_sharpness == pytest.approx(float(u @ h @ u / (u @ u)), rel=1e-6)
    frozen = FrozenOptimizer.trained(optimizer, named)
    frozen.observe(dict(zip(named, torch.autograd.grad(loss(tall(x), y), [*named.values()]), strict=True)))
    roots = [
        torch.stack(
            [metric_root(frozen, key)(e).flatten() for e in torch.eye(p.numel(), dtype=p.dtype).reshape(-1, *p.shape)]
        )
        for key, p in named.items()
    ]
    root = torch.block_diag(*roots)
    assert update.metric_sharpness == pytest.approx(float(torch.linalg.eigvalsh(root @ h @ root)[-1]), rel=2e-3)
    assert (update.lr, update.refused) == (0.1, "")


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda model: NorMuon(param_groups(model, matrix_rule="normuon"), lr=0.1), "rows are scaled on the side"),
        (lambda model: torch.optim.Adagrad(model.parameters()), "the metric of Adagrad is not known"),
        (lambda model: torch.optim.AdamW(model.parameters(), amsgrad=True), "amsgrad = True"),
        (lambda model: Muon(param_groups(model), lr=0.1, norm="constant", weight_decay=0.0), "norm = 'constant'"),
    ],
)
def test_metrics_without_a_root_are_refused_by_name(net, data, build, reason):
    optimizer = build(net)
    update = probe_model(net, nn.CrossEntropyLoss(), data, optimizer=optimizer, **ONE).update
    assert reason in update.refused
    assert np.isnan(update.metric_sharpness)
    assert np.isfinite(update.directional_sharpness)


def test_update_in_the_first_step_of_a_warm_up_is_that_of_the_peak(tall, data):
    optimizer = BUILDERS["Muon"](tall)
    trained(tall, optimizer, data)
    loss = nn.CrossEntropyLoss()
    warm = probe_model(tall, loss, data, optimizer=optimizer, **ONE).update
    for group in optimizer.param_groups:
        group.update(initial_lr=group["lr"], lr=0.0)
    cold = probe_model(tall, loss, data, optimizer=optimizer, **ONE).update
    assert (cold.lr, warm.lr) == (0.0, 0.1)
    assert cold.directional_sharpness == pytest.approx(warm.directional_sharpness)
    assert cold.metric_sharpness == pytest.approx(warm.metric_sharpness)


def test_compiled_models_are_probed_as_they_were(tall, data):
    loss = nn.CrossEntropyLoss()
    compiled = probe_model(torch.compile(tall, backend="aot_eager"), loss, data, **QUICK)
    assert compiled.as_dict() == probe_model(tall, loss, data, **QUICK).as_dict()


def test_noise_of_equal_batches_is_none_and_one_batch_has_no_noise(net, data):
    loss = nn.CrossEntropyLoss()
    noise = probe_model(net, loss, [data[0]] * 3, **ONE).noise
    assert (noise.sharp, noise.flat) == pytest.approx((0.0, 0.0), abs=1e-9)
    assert probe_model(net, loss, [data[0], data[2]], **ONE).noise is None
    mixed = probe_model(net, loss, data, **ONE).noise
    assert mixed.flat > 0


def test_half_precision_is_probed_in_float32_with_a_warning(tall, data):
    half = copy.deepcopy(tall).bfloat16()
    optimizer = BUILDERS["AdamW"](half)
    batches = [(x.float(), y) for x, y in data]
    before = copy.deepcopy(half.state_dict())
    with pytest.warns(UserWarning, match="bfloat16"):
        found = probe_model(half, nn.CrossEntropyLoss(), batches, optimizer=optimizer, **ONE)
    assert_same(half.state_dict(), before)
    wide = probe_model(half.float(), nn.CrossEntropyLoss(), batches, **ONE)
    assert found.loss == pytest.approx(wide.loss)
    np.testing.assert_allclose(found.spectra[0].eigenvalues, wide.spectra[0].eigenvalues, rtol=1e-2)
    assert found.update.metric_sharpness > 0


class OnceOnly(torch.autograd.Function):
    """A fused kernel: its backward pass has no derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0] * g


class Detached(torch.autograd.Function):
    """A kernel whose backward pass calls another one that autograd does not see."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, g):
        return (2 * ctx.saved_tensors[0] * g).detach()


class Fused(nn.Module):
    def __init__(self, kernel):
        super().__init__()
        self.first, self.last, self.kernel = nn.Linear(3, 4), nn.Linear(4, 2), kernel

    def forward(self, x):
        return self.last(self.kernel.apply(self.first(x)))


def cross_entropy(z, y):
    return functional.cross_entropy(z, y)


X, Y = torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)


@pytest.mark.parametrize(
    ("model", "loss", "batches", "options", "message"),
    [
        (nn.Linear(3, 2), cross_entropy, [], {}, "batches is empty"),
        (nn.Linear(3, 2), cross_entropy, [(X, Y), (X * float("nan"), Y)], {}, "loss of batch 1 is nan"),
        (nn.Linear(3, 2), cross_entropy, [(X[:0], Y[:0])], {}, "loss of batch 0 is nan"),
        (nn.Linear(3, 2), cross_entropy, [X], {}, "batch 0 is of type Tensor"),
        (nn.Linear(3, 2), cross_entropy, [(X, Y), {"x": X}], {}, "mixes pairs and mappings"),
        (nn.Linear(3, 2), None, [(X, Y)], {}, "loss = None"),
        (nn.Linear(3, 2), None, [{"input": X}], {}, "no 'labels'"),
        (nn.Linear(3, 2), nn.CrossEntropyLoss(reduction="sum"), [(X, Y)], {}, "reduction = 'sum'"),
        (nn.Linear(3, 2), lambda z, y: z, [(X, Y)], {}, r"loss of batch 0 is \(2, 2\)"),
        (nn.Linear(3, 2), lambda z, y: z.detach().sum(), [(X, Y)], {}, "loss of batch 0 has no gradient"),
        (nn.Linear(3, 2), lambda model, b: model(**b).sum(), [{"input": X}], {"operators": ["fisher"]}, "fisher"),
        (nn.Linear(3, 2), cross_entropy, [(X, Y)], {"operators": ["trace"]}, "operator"),
        (nn.Linear(3, 2), cross_entropy, [(X, Y)], {"operators": []}, "operators is empty"),
        (nn.Linear(3, 2), cross_entropy, [(X, Y)], {"parameters": ["head.*"]}, "no parameter is called 'head"),
        (nn.Linear(3, 2), cross_entropy, [(X, Y)], {"eigenvalues": 0}, "eigenvalues = 0"),
        (nn.Linear(3, 2), cross_entropy, [(X, Y)], {"optimizer": torch.optim.SGD([X])}, "has none of the chosen"),
        (nn.Linear(3, 2).requires_grad_(False), cross_entropy, [(X, Y)], {}, "requires_grad"),
        (Fused(OnceOnly), cross_entropy, [(X + 1, Y)], {}, "attn_implementation='eager'"),
        (Fused(Detached), cross_entropy, [(X + 1, Y)], {}, "attn_implementation='eager'"),
    ],
)  # fmt: skip
def test_bad_input_is_named(model, loss, batches, options, message):
    with pytest.raises(ValueError, match=message):
        probe_model(model, loss, batches, **options)


def test_a_loss_of_more_than_the_next_tokens_is_refused(llama, texts):
    class Balanced(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = llama

        def forward(self, labels=None, **inputs):
            found = self.inner(labels=labels, **inputs)
            if labels is not None:
                found.loss = found.loss + 0.1
            return found

    with pytest.raises(ProbeError, match="it is not that loss alone"):
        probe_model(Balanced(), None, texts, **QUICK)


def test_training_does_not_notice_the_record(data, tmp_path):
    def run(record):
        torch.manual_seed(3)
        net = Net().double()
        optimizer = SOAPLITE(param_groups(net, matrix_rule="soap"), lr=0.01)
        for step in range(1, 7):
            x, y = data[step % 2]
            optimizer.zero_grad()
            functional.cross_entropy(net(x), y).backward()
            optimizer.step()
            if record is not None:
                record(step, net, optimizer)
        return net.state_dict(), optimizer.state_dict()

    path = tmp_path / "made" / "curvature.jsonl"
    record = CurvatureRecord(path, nn.CrossEntropyLoss(), data, every=2, **ONE)
    assert_same(run(record), run(None))
    assert [row["step"] for _, row in read_json_lines(path)] == [2, 4, 6]
    path.write_bytes(path.read_bytes() + b'{"step": 8, "lo')  # killed
    again = CurvatureRecord(path, nn.CrossEntropyLoss(), data, every=2, **ONE)
    again(4, Net().double())
    again(6, Net().double())
    assert [row["step"] for _, row in read_json_lines(path)] == [2, 4, 6]
    with pytest.raises(ValueError, match="every = 0"):
        CurvatureRecord(path, None, data, every=0)


def test_callback_probes_without_the_autocast_of_accelerate(tall, data, tmp_path):
    model, batches = tall.float(), [(x.float(), y) for x, y in data]
    plain = probe_model(model, nn.CrossEntropyLoss(), batches, **ONE)
    model._original_forward = model.forward
    model.forward = torch.autocast("cpu", dtype=torch.bfloat16)(model.forward)
    wrapped = model.forward
    record = CurvatureRecord(tmp_path / "c.jsonl", nn.CrossEntropyLoss(), batches, every=1, **ONE)
    callback = CurvatureCallback(record, with_update=False)
    callback.on_step_end(None, TrainerState(global_step=3, is_world_process_zero=True), None, model=model)
    ((_, row),) = read_json_lines(record.path)
    assert row == {"step": 3} | plain.as_dict()
    assert model.forward is wrapped


def test_trainer_does_not_notice_the_callback(tmp_path):
    def run(name, *callbacks):
        trainer = make_trainer(tmp_path / name, steps=4, save_steps=100, width=16)
        for callback in callbacks:
            trainer.add_callback(callback)
        trainer.train()
        return trainer.model.state_dict(), trainer.optimizer.state_dict()

    ids = torch.arange(16).reshape(2, 8)
    path = tmp_path / "curvature.jsonl"
    options = {"every": 2, "parameters": ["*.0.mlp.*"]}
    record = CurvatureRecord(path, None, [{"input_ids": ids, "labels": ids}], **options, **ONE)
    assert_same(run("with", CurvatureCallback(record)), run("without"))
    rows = [row for _, row in read_json_lines(path)]
    assert [row["step"] for row in rows] == [2, 4]
    assert all(row["update"]["metric_sharpness"] > 0 for row in rows)
