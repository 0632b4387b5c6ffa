"""A plain PyTorch loop with MuonLITE, its schedule, and checkpoints that continue bit for bit.

Run in a clone: ``python examples/plain_loop.py``; stop it at any time and run it again.
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.optim.lr_scheduler import ChainedScheduler, LambdaLR

from lite import LITESchedule, MuonLITE, learning_rate_factor, param_groups

VOCABULARY, WIDTH = 32, 48


class TinyModel(nn.Module):
    """Predicts the next token from the last two."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.norm = nn.LayerNorm(2 * WIDTH)
        self.up = nn.Linear(2 * WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens):
        """Logits, shape (batch, length - 1, vocabulary), of tokens of shape (batch, length)."""
        x = self.embedding(tokens)
        pairs = torch.cat([x[:, :-1], x[:, 1:]], dim=-1)
        return self.head(self.down(nn.functional.gelu(self.up(self.norm(pairs)))))


def batch(step):
    """Sequences in which each token is a fixed function of the two before it; always the same for a given step."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(VOCABULARY, (16, 12), generator=generator)
    for k in range(2, tokens.size(1)):
        tokens[:, k] = (5 * tokens[:, k - 1] + 3 * tokens[:, k - 2] + 1) % VOCABULARY
    return tokens


def train(folder, *, steps, save_every=50, stop_after=None):
    """Train, or continue from the last checkpoint in a folder.

    Args:
        folder: Folder of the checkpoint.
        steps: Number of steps of the whole run.
        save_every: Steps between checkpoints.
        stop_after: Stop this call at this step, as an interruption would; None trains to the end.

    Returns:
        The model and the losses of this call's steps.
    """
    torch.manual_seed(0)
    model = TinyModel()
    warmup = max(1, steps // 20)
    optimizer = MuonLITE(param_groups(model, head=model.head), lr=0.01)
    rate = partial(learning_rate_factor, schedule="cosine", warmup_steps=warmup, total_steps=steps)
    lite = LITESchedule(optimizer, warmup_steps=warmup, total_steps=steps)
    parts = {"model": model, "optimizer": optimizer, "scheduler": ChainedScheduler([LambdaLR(optimizer, rate), lite])}

    start, path = 0, Path(folder) / "checkpoint.pt"
    if path.exists():
        saved = torch.load(path, weights_only=True)
        start = saved.pop("step")
        for name, part in parts.items():
            part.load_state_dict(saved[name])

    losses = []
    for step in range(start, steps if stop_after is None else stop_after):
        tokens = batch(step)
        loss = nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 2:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()  # raises a step later if a gradient was not finite; nothing has changed then
        parts["scheduler"].step()
        losses.append(loss.detach())
        if (step + 1) % save_every == 0:
            optimizer.check_gradients()
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"step": step + 1, **{name: part.state_dict() for name, part in parts.items()}}, path)
    return model, [loss.item() for loss in losses]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", default="runs/plain_loop", help="folder of the checkpoint")
    parser.add_argument("--steps", type=int, default=300, help="number of steps of the whole run")
    arguments = parser.parse_args()
    _, losses = train(arguments.folder, steps=arguments.steps)
    print(f"loss {losses[0]:.3f} → {losses[-1]:.3f} in {len(losses)} steps" if losses else "the run was complete")
