"""transformers' Trainer with MuonLITE: a tiny Llama on sequences that follow a rule.

Run in a clone: ``python examples/trainer.py --resume`` continues from the last checkpoint.
"""

import argparse
from functools import partial

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from lite import LITESchedule, MuonLITE, learning_rate_factor, param_groups

VOCABULARY, LENGTH = 32, 16


class Rule(Dataset):
    """Sequences in which each token is a fixed function of the one before it."""

    def __len__(self):
        return 4096

    def __getitem__(self, index):
        tokens = [index % VOCABULARY]
        while len(tokens) < LENGTH:
            tokens.append((5 * tokens[-1] + 3) % VOCABULARY)
        tokens = torch.tensor(tokens)
        return {"input_ids": tokens, "labels": tokens}


class RatesOfLITE(TrainerCallback):
    """Sets χ and β_flat, while the Trainer's own scheduler sets the learning rate.

    Both depend only on the number of steps, so that a resumed run needs no further state.
    """

    def __init__(self, schedule):
        self.schedule = schedule

    def on_step_end(self, args, state, control, **kwargs):
        """Follow the Trainer's count."""
        self.schedule.step()

    def on_train_begin(self, args, state, control, **kwargs):
        """Continue where a checkpoint left off."""
        self.schedule.load_state_dict({**self.schedule.state_dict(), "last_epoch": state.global_step})


def make_trainer(folder, *, steps, save_steps=100, width=64):
    """A Trainer with a tiny Llama, MuonLITE, and both schedules."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    model = LlamaForCausalLM(config)
    warmup = max(1, steps // 20)
    optimizer = MuonLITE(param_groups(model), lr=0.01)
    rate = partial(learning_rate_factor, schedule="cosine", warmup_steps=warmup, total_steps=steps)
    scheduler = LambdaLR(optimizer, rate)
    lite = LITESchedule(optimizer, warmup_steps=warmup, total_steps=steps)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=8,
        max_grad_norm=1.0,
        logging_steps=max(1, steps // 10),
        save_steps=save_steps,
        report_to=[],
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=Rule(),
        optimizers=(optimizer, scheduler),
        callbacks=[RatesOfLITE(lite)],
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", default="runs/trainer", help="folder of the checkpoints")
    parser.add_argument("--steps", type=int, default=200, help="steps of the whole run")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint")
    options = parser.parse_args()
    print(make_trainer(options.folder, steps=options.steps).train(resume_from_checkpoint=options.resume or None))
