r"""Cost estimates of a run before it starts: parameters, FLOPs, memory and time.

FLOPs of forward and backward per token are :math:`6N + 12\,L\,d\,T`: N counts every parameter that a token uses (all
except the embedding, which is a look-up; of each expert stack only the chosen share), for L layers of width d and
sequences of T tokens; causal attention is counted in full, as usual (Chowdhery et al., PaLM, arXiv:2204.02311, appendix
B).

The optimizer's state and FLOPs come from two steps on fake tensors (nothing is allocated or computed); factorisations
(QR, eigh) are not counted in FLOPs. Activations and the rate come from one real forward and backward pass.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor import DTensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig, PreTrainedModel

from discretizations.matrices.bfloat16_products import FLOP_FORMULAS
from lite import LITEOptimizer
from riemannian_ode.checks import one_line, shown
from rishd.pretraining.config import PretrainConfig
from rishd.pretraining.config_files import ConfigError
from rishd.pretraining.models import build_model, chosen_experts
from rishd.pretraining.optimizers import build_optimizer, optimizer_class, try_optimizer, try_scheduler

_CALIBRATION_TOKENS = 4096  # most tokens of the measured pass (but at least one sequence)
_UNKNOWN_STATE = 8.0  # bytes per parameter if an optimizer cannot run on fake tensors: AdamW's two float32 moments


class DoesNotFitError(ValueError):
    """A run that needs more memory than available; the message has both numbers and remedies."""


@dataclass(frozen=True)
class StaticCost:
    """Costs that are known without computing anything.

    Args:
        parameters: Trainable parameters.
        non_embedding_parameters: The same without embedding and output head.
        active_parameters: Those of ``parameters`` that one token uses, without the embedding.
        flops_per_token: FLOPs of forward and backward.
        optimizer_flops: FLOPs of one step, matrix products only; 0 for elementwise rules.
        weight_bytes: Weights on one rank.
        gradient_bytes: Gradients on one rank.
        optimizer_bytes: Optimizer state on one rank.
    """

    parameters: int
    non_embedding_parameters: int
    active_parameters: int
    flops_per_token: float
    optimizer_flops: float
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int

    @property
    def bytes(self) -> int:
        """Weights, gradients and optimizer state."""
        return self.weight_bytes + self.gradient_bytes + self.optimizer_bytes

    @property
    def facts(self) -> dict[str, Any]:
        """The entries that a run's record and summary contain."""
        return {
            "parameters": self.parameters,
            "non_embedding_parameters": self.non_embedding_parameters,
            "flops_per_token": self.flops_per_token,
        }


@dataclass(frozen=True)
class MeasuredCost:
    """Costs measured in one forward and backward pass.

    Args:
        activation_bytes: Per sequence: tensors that backward needs, plus twice the largest intermediate.
        seconds: Seconds per sequence.
    """

    activation_bytes: int
    seconds: float


def static_cost(config: PretrainConfig, made: PreTrainedConfig, *, ranks: int = 1) -> StaticCost:
    """Parameters, FLOPs and memory that do not depend on the batch.

    Args:
        config: The run.
        made: The model's configuration.
        ranks: Number of ranks over which weights, gradients and state are sharded (FSDP2).

    Raises:
        ConfigError: for settings that the model or the optimizer refuses.
    """
    length = config.data.sequence_length
    mapping = config.to_mapping()
    settings = [mapping["optimizer"], mapping["schedule"], config.training.precision, length, config.model.attention]
    key = json.dumps(settings)
    known = _known.get((key, made.to_json_string()))
    if known is None:
        try_optimizer(
            config.optimizer, torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        )
        with FakeTensorMode():
            model = build_model(config, made)
            weights = sum(p.nbytes for p in model.parameters())
            try_scheduler(config, model)
            state, flops = _optimizer_cost(config, model)
        known = StaticCost(
            parameters=parameter_count(model),
            non_embedding_parameters=parameter_count(model, embeddings=False),
            active_parameters=active_parameters(model),
            flops_per_token=training_flops_per_token(model, length),
            optimizer_flops=flops,
            weight_bytes=weights,
            gradient_bytes=weights,
            optimizer_bytes=state,
        )
        _known[key, made.to_json_string()] = known
    return replace(
        known,
        weight_bytes=known.weight_bytes // ranks,
        gradient_bytes=known.gradient_bytes // ranks,
        optimizer_bytes=known.optimizer_bytes // ranks,
    )


_known: dict[tuple[str, str], StaticCost] = {}  # fake steps take a second, and many runs of one process need the same


def measured_cost(config: PretrainConfig, model: PreTrainedModel, *, most: int) -> MeasuredCost:
    """Memory and time of a forward and backward pass on random tokens; gradients are dropped afterwards.

    Args:
        config: The run.
        model: The model on its device; if it is sharded, every rank must call this function.
        most: Largest number of sequences per pass.

    Raises:
        ConfigError: if the model fails.
    """
    length = config.data.sequence_length
    count = min(most, max(1, _CALIBRATION_TOKENS // length))
    device = next(model.parameters()).device
    ids = torch.randint(model.config.vocab_size, (count, length), generator=torch.Generator().manual_seed(0)).to(device)
    autocast = config.training.precision == "bfloat16-mixed"
    model.train()
    seconds: list[float] = []
    while len(seconds) < 2:  # the first pass includes set-up
        saved = _SavedBytes(model)
        _wait(device)
        begin = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast), saved:
            loss = _try_pass(config, model, ids)
        loss.backward()
        _wait(device)
        seconds.append(time.perf_counter() - begin)
        model.zero_grad(set_to_none=True)
    return MeasuredCost((saved.total + 2 * saved.largest) // count, min(seconds) / count)


def _try_pass(config: PretrainConfig, model: PreTrainedModel, ids: Tensor) -> Any:
    """Loss of a forward pass; some bad model settings fail only here."""
    try:
        return model(input_ids=ids, labels=ids).loss
    except torch.OutOfMemoryError:
        raise
    except Exception as problem:  # transformers' models raise their own errors
        settings = one_line(", ".join(config.model.settings) or "none", 80)
        raise ConfigError(
            f"the model cannot make a forward pass ({type(problem).__name__}: {one_line(problem, 120)}); check "
            f"model.settings ({settings}) and model.attention = {shown(config.model.attention)}."
        ) from problem


def estimate(config: PretrainConfig, static: StaticCost, measured: MeasuredCost, *, micro: int, ranks: int) -> str:
    """One sentence about what the run will need.

    Args:
        config: The run.
        static: Cost of the model and optimizer.
        measured: Cost of a pass.
        micro: Sequences per pass.
        ranks: Number of ranks that share the batch.
    """
    length = config.data.sequence_length
    passes = measured.seconds * config.training.batch_size / ranks
    rate = static.flops_per_token * length / measured.seconds
    divided = issubclass(optimizer_class(config.optimizer.name), LITEOptimizer)
    optimizer = static.optimizer_flops / rate / (ranks if divided else 1)
    evaluations = config.steps // config.evaluation.every + 1
    evaluation = evaluations * measured.seconds / 3 * config.evaluation_sequences / ranks  # a forward pass is a third
    total = config.steps * (passes + optimizer) + evaluation
    activations = measured.activation_bytes * micro
    return (
        f"needs about {size(static.bytes + activations)} a rank (weights {size(static.weight_bytes)}, gradients "
        f"{size(static.gradient_bytes)}, optimizer state {size(static.optimizer_bytes)}, activations "
        f"{size(activations)}) and {duration(total)} at the measured {rate / 1e9:.3g} GFLOP/s ({passes:.3g} s forward "
        f"and backward and {optimizer:.2g} s of matrix products in the optimizer a step)"
    )


def require_memory(static: StaticCost, device: torch.device, *, activation_bytes: int | None = None) -> None:
    """Refuse a run that does not fit in memory.

    Args:
        static: Weights, gradients, state.
        device: Device of the run.
        activation_bytes: Bytes of one pass; ``None`` before the weights exist.

    Raises:
        DoesNotFitError: giving the needed and the available memory.
    """
    parts = {"weights": static.weight_bytes, "gradients": static.gradient_bytes}
    parts["optimizer state"] = static.optimizer_bytes
    there = available_memory(device)
    remedy = ""
    if activation_bytes is not None:
        parts["activations"] = activation_bytes
        there += static.weight_bytes
        remedy = "a smaller training.micro_batch_size, training.gradient_checkpointing, "
    needed = sum(parts.values())
    if needed > there:
        told = ", ".join(f"{name} {size(count)}" for name, count in parts.items())
        raise DoesNotFitError(
            f"the run needs {size(needed)} of memory on each rank ({told}), and {device} has {size(there)}; take "
            f"{remedy}a smaller model, training.precision = bfloat16, or several ranks with training.sharding = fsdp2."
        )


def available_memory(device: torch.device) -> int:
    """Memory available to a run on a device: free on an accelerator, else available to this process."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    available = int(psutil.virtual_memory().available)
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))  # limit of a container
    try:
        return min(available, int(limit.read_text()) - int(used.read_text()))
    except (OSError, ValueError):  # no such limit, or "max"
        return available


def parameter_count(model: PreTrainedModel, *, embeddings: bool = True) -> int:
    """Trainable parameters, with or without embedding and output head."""
    tables = {id(p) for module in _tables(model) for p in module.parameters()}
    return sum(p.numel() for p in model.parameters() if p.requires_grad and (embeddings or id(p) not in tables))


def active_parameters(model: PreTrainedModel) -> int:
    """Parameters that one token uses, without the embedding and with the chosen share of each expert stack."""
    looked_up = {id(p) for p in model.get_input_embeddings().parameters()}
    if bool(getattr(model.config, "tie_word_embeddings", False)):
        looked_up = set()  # the head uses them
    count = 0
    for module in model.modules():
        for p in module.parameters(recurse=False):
            if id(p) in looked_up:
                continue
            experts = getattr(module, "num_experts", None)
            if p.ndim == 3 and experts == p.size(0):
                count += p.numel() * (chosen_experts(model.config) or experts) // experts
            else:
                count += p.numel()
    return count


def training_flops_per_token(model: PreTrainedModel, sequence_length: int) -> float:
    r""":math:`6N + 12\,L\,d\,T`, see above.

    Args:
        model: A transformer.
        sequence_length: T.
    """
    layers, width = int(model.config.num_hidden_layers), int(model.config.hidden_size)
    return 6.0 * active_parameters(model) + 12.0 * layers * width * sequence_length


def duration(seconds: float) -> str:
    """Seconds in human-readable form."""
    for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.2g} s"


def size(count: float) -> str:
    """Bytes in human-readable form."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.1f} MiB"


def _optimizer_cost(config: PretrainConfig, model: nn.Module) -> tuple[int, float]:
    try:
        optimizer = build_optimizer(config.optimizer, model)
        if isinstance(optimizer, LITEOptimizer):
            optimizer.on_nonfinite = "ignore"  # nothing to measure
        for _ in range(2):  # the first step of SOAP only sets its bases
            for p in model.parameters():
                p.grad = torch.empty_like(p)
            with FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as counter:
                optimizer.step()
        flops = float(counter.get_total_flops())
    except RuntimeError:  # an optimizer that reads values fails on fake tensors
        return int(_UNKNOWN_STATE * sum(p.numel() for p in model.parameters())), 0.0
    tensors = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
    return sum(v.nbytes for v in tensors), flops


class _SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that autograd keeps for backward, each storage once, without parameters."""

    def __init__(self, model: nn.Module) -> None:
        self.total = self.largest = 0
        whole = [p for p in model.parameters() if isinstance(p, DTensor)]  # gathered for each use, not kept
        self._gathered = {tuple(p.shape) for p in whole} | {tuple(p.shape)[::-1] for p in whole}
        self._seen = {p.untyped_storage().data_ptr() for p in model.parameters() if not isinstance(p, DTensor)}
        super().__init__(self._note, lambda tensor: tensor)

    def _note(self, tensor: Any) -> Any:
        if tuple(tensor.shape) in self._gathered:
            return tensor
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.total += storage.nbytes()
            self.largest = max(self.largest, storage.nbytes())
        return tensor


def _tables(model: PreTrainedModel) -> list[nn.Module]:
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return [module for module in (model.get_input_embeddings(), head) if module is not None]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
