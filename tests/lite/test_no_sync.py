"""No step waits for the device: under FakeTensorMode a Python branch on a tensor's value raises.

A copy from the host's memory to the device waits, too; with tensors on "meta" such copies are counted.

A rule that counts gradients waits for one thing, whether those of the previous step were finite.
"""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lite import SOAPLITE, MuonLITE, NonFiniteError, NorMuonLITE, QKClip
from lite.execution.finiteness import FinitenessWatch, _Pending
from tests.lite.optimizers import FAMILY, RULES


def parameters(device):
    """Every layout and dtype, several of a shape, vectors and empty ones."""
    half = torch.bfloat16

    def make(*shape, dtype=torch.float32):
        return nn.Parameter(torch.randn(size=shape, dtype=dtype, device=device))

    return [
        {"params": [make(8, 12), make(8, 12), make(12, 8), make(30, 6), make(0, 3), make(1, 5)]},
        {"params": [make(6, 30, dtype=half), make(6, 30, dtype=half)], "stochastic_rounding": True},
        {"params": [make(6, 9, dtype=torch.float16), make(6, 9, dtype=torch.float64)]},
        {"params": [make(24, 8)], "layout": "matrix", "blocks": (8, 16)},
        {"params": [make(3, 6, 8)], "layout": "experts", "blocks": (4, 4), "block_axis": -1},
        {"params": [make(4, 3, 2, 2)], "layout": "conv"},
        {"params": [make(12), make(12), make(5, 7, dtype=half), make()], "rule": "adamw", "chi": 4.0},
    ]


class HostCopies(TorchDispatchMode):
    """Counts copies between the host and another device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if "copy" in str(func):
            tensors = (x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor))
            self.count += len({x.device for x in tensors}) > 1
        return result


WAYS = [("skip", "cpu"), ("ignore", "meta"), ("skip", "meta"), ("ignore", "cpu")]
CASES = [(name, *way) for name in RULES for way in (WAYS[:2] if name in FAMILY else WAYS)]
CASES.remove(("shampoo, newton", "skip", "cpu"))  # hundreds of products, slow under FakeTensorMode


# Settings that take a way of their own through a step, and that no rule above has.
SETTINGS = {
    "float16": partial(MuonLITE, ns_dtype="float16"),
    "jordan in float16": partial(MuonLITE, ns="jordan", ns_dtype="float16", scale="spectral"),
    "random": partial(MuonLITE, mask="random"),
    "random, redrawn": partial(MuonLITE, mask="random-redrawn"),
    "graded by Frobenius": partial(MuonLITE, mask="graded-frobenius", nesterov=False),
    "cautious": partial(MuonLITE, decay="cautious"),
    "constant norm": partial(MuonLITE, norm="constant", weight_decay=0.0),
    "auto, inside": partial(NorMuonLITE, chi="auto", damping="inside", beta_flat=4.0),
    "kl-soap, auto": partial(SOAPLITE, precondition_frequency=2, divergence="kl", chi="auto"),
}
CASES += [(name, "ignore", "meta") for name in SETTINGS] + [(name, "skip", "cpu") for name in SETTINGS]


@pytest.mark.parametrize(("name", "on_nonfinite", "device"), CASES)
def test_no_step_waits_for_the_device(name, on_nonfinite, device, monkeypatch):
    """Nor by the code for other devices than the CPU: tensors on "meta" have no values to read either."""
    with FakeTensorMode() if device == "cpu" else nullcontext():
        optimizer = {**RULES, **SETTINGS}[name](parameters(device), 0.01, on_nonfinite=on_nonfinite)
        settled = []
        if optimizer.counts_gradients:

            def settle(self, *, wait=True):
                settled.append([pending.step for pending in self._pending])
                self._pending.clear()

            monkeypatch.setattr(FinitenessWatch, "settle", settle)
        for k in range(4):
            for group in optimizer.param_groups:
                for p in group["params"]:
                    p.grad = torch.randn_like(p)
            with HostCopies() as copies:
                optimizer.step()
            assert k == 0 or not copies.count  # the first step makes the state
        assert all(x.device.type == device for state in optimizer.state.values() for x in state.values())
        if optimizer.counts_gradients:  # before a step, the flags of the one before; nothing else
            assert settled == ([[], [0], [1], [2]] if on_nonfinite == "skip" else [[], [], [], []])


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_branch_on_a_value_would_be_found(device):
    class Branching(MuonLITE):
        def matrix_update(self, group, w, g, state, **turn):
            return super().matrix_update(group, w if g.norm() > 0 else -w, g, state, **turn)

    with FakeTensorMode() if device == "cpu" else nullcontext():
        p = nn.Parameter(torch.randn(4, 5, device=device))
        optimizer = Branching([p], 0.01, on_nonfinite="skip")
        p.grad = torch.randn_like(p)
        with pytest.raises((DataDependentOutputException, RuntimeError), match=r"local_scalar_dense|item\(\)|meta"):
            optimizer.step()


def test_a_copy_from_the_host_would_be_found():
    with HostCopies() as copies:
        torch.ones(2).to("meta"), torch.ones(2, device="meta").copy_(torch.ones(2))
    assert copies.count == 2


class Attention(nn.Module):
    """Causal attention with two query heads per key head, in the names of Llama."""

    head_dim = 4

    def __init__(self):
        super().__init__()
        self.q_proj, self.o_proj = nn.Linear(16, 16), nn.Linear(16, 16)
        self.k_proj, self.v_proj = nn.Linear(16, 8), nn.Linear(16, 8)

    def forward(self, x):
        q, k, v = (
            layer(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        seen = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(seen.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_qk_clip_does_not_wait_for_the_device(device):
    """Neither where it watches a pass nor where it scales weights."""
    with FakeTensorMode() if device == "cpu" else nullcontext(), torch.device(device):
        model = nn.Sequential(Attention(), Attention())
        clip = QKClip(model, threshold=0.1)
        for _ in range(2):
            with clip.watching():
                model(torch.randn(2, 6, 16))
                model(torch.randn(2, 6, 16))
            assert [largest.shape for largest in clip.maxima.values()] == [(4,), (4,)]
            clip.step()
        assert not clip.maxima


class Event:
    """Stands in for a CUDA event: it completes when it is waited for, or when the test says so."""

    def __init__(self):
        self.is_reached, self.waits = False, 0

    def query(self):
        return self.is_reached

    def synchronize(self):
        self.is_reached, self.waits = True, self.waits + 1


def test_flags_are_read_once_the_device_has_got_there_and_four_steps_late_at_most():
    watch, events = FinitenessWatch(), [Event() for _ in range(6)]
    for step, event in enumerate(events[:5]):
        watch._pending.append(_Pending(step, ["w"], torch.tensor([True]), event, raises=True, undo=None))
        watch.check()
        assert sum(e.waits for e in events) == (step == 4)  # five are pending: the oldest is waited for
    events[1].is_reached = True
    watch.check()
    assert len(watch._pending) == 3 and sum(e.waits for e in events) == 1
    watch._pending.append(_Pending(5, ["v", "w"], torch.tensor([True, False]), events[5], raises=True, undo=None))
    watch.check()  # not known yet
    with pytest.raises(NonFiniteError, match="at step 5 of this optimizer in w;"):
        watch.check(wait=True)
    watch.check(wait=True)  # reported once
