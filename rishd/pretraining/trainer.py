"""transformers' Trainer with checks for non-finite numbers, exact evaluation, and atomic checkpoints."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, Subset
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, Trainer
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import EvalLoopOutput

from lite import NonFiniteError, check_finite_gradients
from riemannian_ode.atomic import move_into_place, partial_folder, to_disk
from rishd.pretraining.blocks import IGNORED
from rishd.pretraining.checkpoint_folders import RunCheckpointError, kept, readable, step_of, write_checkpoint
from rishd.pretraining.checksums import digests, files_of, write_sums
from rishd.pretraining.clock import StepClock
from rishd.pretraining.logit_clipping import LogitClipping
from rishd.pretraining.optimizer_state import load_optimizer, save_optimizer, saved_optimizer
from rishd.pretraining.results import METRICS, MODEL
from rishd.pretraining.updates import UpdateNorms
from rishd.pretraining.weights import WEIGHTS, load_weights, save_weights


class PretrainTrainer(Trainer):
    """transformers' Trainer for pre-training.

    It stops at the first non-finite gradient, before clipping spreads it. Its validation loss is the mean over all
    tokens, independent of batches and ranks. Its checkpoints are atomic.

    Args:
        clock: Counts training time.
        updates: Measured updates, which are logged with the loss.
        keep: Number of checkpoints to keep.
        logits: Clips attention logits, if at all.
        arguments: Arguments of transformers' Trainer.
    """

    def __init__(
        self, *, clock: StepClock, updates: UpdateNorms, keep: int, logits: LogitClipping, **arguments: Any
    ) -> None:
        self.clock, self.updates, self.keep, self.logits = clock, updates, keep, logits
        super().__init__(**arguments)
        self.add_callback(logits)
        self.model: PreTrainedModel
        first = next(self.model.parameters())
        # Sharded by fully_shard: accelerate must neither wrap the model nor shard it again, as if transformers had
        # sharded it.
        self.is_distributed_loading_by_transformers = isinstance(first, DTensor)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log for all trackers."""
        if "loss" in logs:
            logs |= self.updates.read()
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: Any) -> int:
        """None: the Trainer would count all parameters at each step, for a number that the summary already has."""
        return 0

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """Loss of one pass, with a router's balancing loss averaged over passes and ranks.

        transformers divides only the cross-entropy by the tokens of all passes and ranks, adds the undivided balancing
        loss, and multiplies the sum by the number of ranks.
        """
        with self.logits.watching():
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        aux = outputs.get("aux_loss") if isinstance(outputs, dict) else None
        if isinstance(aux, torch.Tensor) and num_items_in_batch is not None:
            ranks = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            excess = ranks - 1.0 / self.current_gradient_accumulation_steps
            loss = loss - self.model.config.router_aux_loss_coef * excess * aux.to(loss.device)
        return (loss, outputs) if return_outputs else loss

    @contextmanager
    def _defer_fsdp_gradient_reduction(self) -> Iterator[None]:
        model: Any = self.model
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)

    def _clip_grad_norm(self, model: torch.nn.Module) -> torch.Tensor:
        norm = self._gradient_norm(model)
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), self.args.max_grad_norm, norm)
        return norm

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: torch.Tensor | None = None) -> torch.Tensor:
        return self._gradient_norm(model) if grad_norm is None else grad_norm

    def _gradient_norm(self, model: torch.nn.Module) -> torch.Tensor:
        """Norm of the gradient over all parameters and ranks.

        Raises:
            NonFiniteError: naming step and parameters.
        """
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        if not math.isfinite(norm.item()):
            step, names = self.state.global_step, ((n.removeprefix("module."), p) for n, p in model.named_parameters())
            try:
                check_finite_gradients(names, step=step)
            except NonFiniteError as error:
                raise NonFiniteError(f"{error} {kept(self._folder)}") from None
            raise NonFiniteError(f"the gradient's norm is not finite at step {step}. {kept(self._folder)}")
        return norm

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """This rank's share of the validation blocks, in its order."""
        data: Any = eval_dataset if eval_dataset is not None else self.eval_dataset
        share = Subset(data, range(self.args.process_index, len(data), self.args.world_size))
        return DataLoader(share, self.args.eval_batch_size, collate_fn=self.data_collator)

    @torch.no_grad()
    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Validation loss: the mean over all tokens, without a router's loss.

        Raises:
            NonFiniteError: if it is not finite; the parameters are then lost and not saved.
        """
        model = self.model_wrapped
        model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        batches = list(dataloader)
        # Ranks of a sharded model must make equally many passes: ranks with fewer repeat one, which does not count.
        data: Any = self.eval_dataset
        spare = batches[-1] if batches else self.data_collator([data[0]])
        for i in range(self._most_passes(len(batches))):
            inputs = self._prepare_inputs(batches[i] if i < len(batches) else spare)
            if i >= len(batches):
                inputs["labels"] = torch.full_like(inputs["labels"], IGNORED)
            sums += self._loss_sum(model, inputs)
        if dist.is_initialized():
            dist.all_reduce(sums)
        loss = (sums[0] / sums[1]).item()
        if not math.isfinite(loss):
            raise NonFiniteError(
                f"the validation loss is not finite at step {self.state.global_step}; lower the learning rate or "
                f"warm up longer. {kept(self._folder)}"
            )
        return EvalLoopOutput(None, None, {f"{metric_key_prefix}_loss": loss}, len(self.eval_dataset))  # type: ignore[arg-type]

    def _loss_sum(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        """Sum of the tokens' losses and number of tokens, float64."""
        if getattr(self.model.config, "output_router_logits", False):
            inputs = {**inputs, "output_router_logits": False}
        count = (inputs["labels"][..., 1:] != IGNORED).sum()
        with self.compute_loss_context_manager():
            loss = model(**inputs, num_items_in_batch=torch.ones_like(count)).loss
        return torch.stack([loss.double(), count.double()])

    def _most_passes(self, own: int) -> int:
        if not dist.is_initialized():
            return own
        most = torch.tensor(own, device=self.args.device)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return int(most)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        other_work = self.control.should_evaluate or self.control.should_save
        if other_work:
            self.clock.pause()
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if other_work:
            self.clock.start()

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        self.store_flos()
        step, first = self.state.global_step, self.is_world_process_zero()

        def write(folder: Path) -> None:
            save_weights(self.model, folder / WEIGHTS, is_first_rank=first)
            save_optimizer(self._own_optimizer, self.model, folder, is_first_rank=first)
            self._save_rng_state(str(folder))
            if first:
                self.model.config.save_pretrained(folder)
                torch.save(self._scheduler.state_dict(), folder / SCHEDULER_NAME)
                self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
                to_disk(self._folder / METRICS)
                shutil.copyfile(self._folder / METRICS, folder / METRICS)

        write_checkpoint(self._folder, step, write, keep=self.keep, is_first_rank=first)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The model in transformers' format, gathered on the first rank if it is sharded."""
        if not self.is_distributed_loading_by_transformers:
            super().save_model(output_dir, _internal_call)
            return
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        whole = get_model_state_dict(self.model, options=options)
        if self.args.should_save and output_dir is not None:
            with torch.device(
                "meta"
            ):  # an unsharded model of the same kind, whose saving does not wait for other ranks
                plain = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                    self.model.config, trust_remote_code=False
                )
            plain.save_pretrained(output_dir, state_dict=whole)

    # Names of transformers' Trainer, which calls them in this order.

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        with readable(folder, TRAINER_STATE_NAME):
            _check_trainer_state(TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME)), step_of(folder))
        with readable(folder, WEIGHTS if (folder / WEIGHTS).exists() else "model.safetensors"):
            load_weights(self.model, folder)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load the state of one process or of any number of ranks, whichever exists."""
        if checkpoint is None:
            return
        folder = Path(checkpoint)
        with readable(folder, saved_optimizer(folder)):
            load_optimizer(self._own_optimizer, self.model, folder, device=self.args.device)
        with readable(folder, SCHEDULER_NAME):
            self._scheduler.load_state_dict(torch.load(folder / SCHEDULER_NAME, weights_only=True))

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Do nothing, since no precision of a run scales its loss."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        folder, rank = Path(checkpoint), self.args.process_index
        name = f"rng_state_{rank}.pth" if self.args.world_size > 1 else "rng_state.pth"
        if not (folder / name).is_file() and any(folder.glob("rng_state*.pth")):
            return  # from another number of ranks: this rank's random numbers start from the seed
        with readable(folder, name):
            if not (folder / name).is_file():
                raise FileNotFoundError("it is missing")
            super()._load_rng_state(checkpoint)

    def _init_training_state(self, max_steps: int, *arguments: Any) -> tuple[int, int]:
        trained: tuple[int, int] = super()._init_training_state(max_steps, *arguments)
        # Logging and checkpoints may change when a run is resumed.
        self.state.compute_steps(self.args, max_steps)  # type: ignore[no-untyped-call]
        return trained

    @property
    def _scheduler(self) -> Any:
        return self.lr_scheduler

    @property
    def _own_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer without accelerate's wrapper."""
        optimizer: Any = self.optimizer
        return getattr(optimizer, "optimizer", optimizer)  # type: ignore[no-any-return]

    @property
    def _folder(self) -> Path:
        return Path(os.fspath(self.args.output_dir))  # type: ignore[arg-type]


def save_model(trainer: PretrainTrainer, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save model and tokenizer in transformers' format as ``model/`` of a run, atomically; every rank calls it.

    The Trainer does not get the tokenizer, because it would put the tokenizer's padding token into the model's
    configuration, and loading then zeroes that token's embedding in some model families.

    Args:
        trainer: Holds the model.
        tokenizer: Tokenizer of the run.
        folder: Of the run.

    Raises:
        RunCheckpointError: if the disk is full.
    """
    place, partial = folder / MODEL, partial_folder(folder / MODEL)
    try:
        trainer.save_model(str(partial))
        if trainer.is_world_process_zero():
            tokenizer.save_pretrained(partial)
            write_sums(partial, digests(partial, files_of(partial)))
            move_into_place(partial, place)
    except Exception as problem:  # safetensors raises its own errors for a full disk
        shutil.rmtree(partial, ignore_errors=True)
        raise RunCheckpointError(f"the model could not be saved ({problem}); make room, then --resume.") from problem


def _check_trainer_state(state: TrainerState, step: int) -> None:
    if state.global_step != step:
        raise ValueError(f"global_step is {state.global_step!r}, expected {step}")
    for name in ("epoch", "total_flos", "num_input_tokens_seen"):
        if not isinstance(getattr(state, name), int | float):
            raise ValueError(f"{name} is not a number")
    if not isinstance(state.log_history, list) or state.best_model_checkpoint is not None:
        raise ValueError("log_history is not a list, or best_model_checkpoint is set")
