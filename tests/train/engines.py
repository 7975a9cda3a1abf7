"""Engines in new processes, and the same steps with peft and plain PyTorch."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model

from ochat_ray.cluster.local_cluster import free_port

PROCESS = Path(__file__).with_name("engine_process.py")
# With an eps far above any gradient, AdamW's first step is rate / eps x gradient: with both equal
# the parameters' change is the gradient itself.
GRADIENT = {"learning_rate": 1e4, "eps": 1e4, "max_grad_norm": 1e9}
END = 299


def random_conversations():
    """Seven of 3 to 20 tokens; weights 0, 1 and in between; one has none at all."""
    rng = np.random.default_rng(0)
    made = []
    for number, length in enumerate([3, 20, 7, 11, 5, 13, 4]):
        weights = rng.choice([0.0, 0.1, 1.0], length)
        weights[0] = 0.0
        weights[-1] = 1.0
        if number == 3:
            weights[:] = 0.0
        made.append((rng.integers(1, 290, length).tolist(), weights.tolist()))
    return made


CONVERSATIONS = random_conversations()


def run_engines(folder, model_directory, world_size, cases):
    """Run named cases one after the other in new processes, and return their results."""
    port = free_port()
    task = {
        "port": port,
        "model": str(model_directory),
        "config": {"dtype": "float32", "gradient_checkpointing": False},
        "conversations": CONVERSATIONS,
        "end_of_turn": END,
        "cases": cases,
    }
    (folder / "task.json").write_text(json.dumps(task))
    running = [
        subprocess.Popen(
            [sys.executable, PROCESS, str(rank), str(world_size), folder],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]
    outputs = [process.communicate()[0] for process in running]
    codes = [process.returncode for process in running]
    assert codes == [0] * world_size, f"{codes}\n" + "\n".join(outputs)[-6000:]
    # DeepSpeed leaves 69 MB per process there.
    assert not list(Path("/dev/shm").glob(f"deepspeed*_{port}_*"))
    return torch.load(folder / "result.pt", weights_only=True)


def peft_run(base, options, before, steps):
    """Return losses, gradient norms and the model of peft and plain PyTorch's AdamW.

    One conversation at a time; `before` are the adapters' first values.
    """
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **options)).train()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(before[name.removeprefix("base_model.model.")])
    optimizer = torch.optim.AdamW(trained.values(), lr=1e3, eps=1e4, weight_decay=0.0)
    weight = sum(sum(weights[1:]) for _, weights in CONVERSATIONS)
    losses, norms = [], []
    for _ in range(steps):
        loss = torch.zeros(())
        for ids, weights in CONVERSATIONS:
            log_probabilities = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
            taken = log_probabilities.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
            loss = loss - (taken * torch.tensor(weights[1:])).sum() / weight
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        norms.append(torch.stack([p.grad.norm() for p in trained.values()]).norm().item())
        optimizer.step()
    return losses, norms, {n.removeprefix("base_model.model."): p for n, p in trained.items()}
