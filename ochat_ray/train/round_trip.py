"""Round trip of an export: it opens as any model does, and computes what the engine computes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from ochat_ray.errors import UserError
from ochat_ray.train.base_model import embeddings
from ochat_ray.train.batch import Batch
from ochat_ray.train.hub_format import HubFormat
from ochat_ray.train.tokens import TokenTable

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Largest relative difference of logits, by the less exact of the two computations' dtypes. The
weights are the same to the last bit; what differs is the order of summation. In bfloat16 that is
1 to 3% over some tens of layers; a wrong rotary base or a head of random numbers is 30 to 140%."""

_TOKENS = 64


def check_exportable(config: Any) -> None:
    """Give a model of this configuration a token, and convert it to its files' names and back.

    It has no weights.

    Raises:
        UserError: the model that would be exported could not be opened again.
    """
    from transformers import AutoModelForCausalLM

    refused = f"a model of type {config.model_type} cannot be exported by this transformers: "
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(copy.deepcopy(config))
            rows = {len(weight) for weight in embeddings(model)}
            model.resize_token_embeddings(max(rows) + 1, mean_resizing=False)
            again = type(AutoModelForCausalLM.from_config(model.config))
        model.tie_weights()
        tied = model.all_tied_weights_keys
        state = {name: t for name, t in model.state_dict().items() if name not in tied}
        hub = HubFormat(model)
        files: dict[str, torch.Tensor] = {}
        for group in hub.groups(state):
            files |= hub.to_file({name: state[name] for name in group})
        opened = hub.to_run_time(files)
    except Exception as error:  # whatever a model's code raises
        raise UserError(refused + _first_line(error)) from error
    if again is not type(model):
        raise UserError(f"{refused}it would open as {again.__name__}")
    if len(rows) > 1:
        raise UserError(f"{refused}its vocabularies of input and output differ")
    changed = [
        name
        for name in sorted({*state, *opened})
        if name not in state or name not in opened or state[name].shape != opened[name].shape
    ]
    if changed:
        raise UserError(
            f"{refused}{', '.join(changed[:3])} would not come back from its files as before"
        )


def choose_conversation(table: TokenTable) -> int:
    """The row of the shortest conversation of 64 tokens or more; else of the longest."""
    lengths = np.asarray(table.lengths)
    enough = np.flatnonzero(lengths >= _TOKENS)
    return int(enough[lengths[enough].argmin()]) if enough.size else int(lengths.argmax())


def check_export(
    directory: Path, pack: Batch, expected: torch.Tensor, dtype: torch.dtype
) -> float | None:
    """Open an export with transformers and compare its logits; None where memory is too small.

    Then only names and shapes are compared, without weights.

    Args:
        directory: the export.
        pack: one conversation, on the CPU.
        expected: the engine's logits at its predicting positions, (predicted, vocabulary).
        dtype: in which the engine computed them.

    Returns:
        The median over positions of the relative difference of logits.

    Raises:
        UserError: it does not open, a tensor is missing, or the logits are others.
    """
    opened = _load_dtype(directory)
    model = _open(directory, opened)
    if opened is None:
        return None
    with torch.no_grad():
        logits = model(input_ids=pack.input_ids, use_cache=False).logits[0][pack.label_positions]
    difference = relative_difference(logits.float(), expected)
    tolerance = max(TOLERANCE[opened], TOLERANCE[dtype])
    if not difference <= tolerance:
        raise UserError(
            f"the exported model's logits differ by {difference:.1%} from those of training "
            f"(at most {tolerance:.1%} are rounding); the export is not published, the last "
            "checkpoint is kept"
        )
    return difference


def relative_difference(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """Median over positions of |difference| / |expected|; what softmax ignores is left out."""
    if logits.shape != expected.shape:
        return float("inf")
    centred = expected - expected.mean(-1, keepdim=True)
    difference = logits - logits.mean(-1, keepdim=True) - centred
    scale = centred.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    return float((difference.norm(dim=-1) / scale).median())


def _load_dtype(directory: Path) -> torch.dtype | None:
    """The dtype in which this host's free memory holds the model; None where it does not."""
    in_bfloat16 = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    available = psutil.virtual_memory().available * 0.8
    if 2 * in_bfloat16 <= available:
        return torch.float32
    return torch.bfloat16 if in_bfloat16 <= available else None


def _open(directory: Path, dtype: torch.dtype | None) -> Any:
    """The exported model, on the meta device where no dtype is given."""
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"device_map": "meta"} if dtype is None else {"dtype": dtype}
    failed = "the exported model cannot be opened, and is not published; the last checkpoint is "
    try:
        opened: Any = AutoModelForCausalLM.from_pretrained(
            directory, output_loading_info=True, local_files_only=True, **options
        )
    except Exception as error:  # whatever a model's code raises
        raise UserError(f"{failed}kept: {_first_line(error)}") from error
    model, info = opened
    problems = {problem: found for problem, found in info.items() if found}
    if problems:
        problem, found = next(iter(problems.items()))
        names = ", ".join(map(str, sorted(found, key=str)[:3]))
        raise UserError(f"{failed}kept: {problem.replace('_', ' ')}: {names}")
    return model.eval()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
