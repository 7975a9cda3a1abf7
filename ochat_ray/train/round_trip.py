"""Round-trip check of an export: transformers loads it, and it computes the engine's logits."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from ochat_ray.errors import UserError, first_line
from ochat_ray.models.base_model import embeddings
from ochat_ray.train.batch import Batch
from ochat_ray.train.hub_format import HubFormat
from ochat_ray.train.tokens import TokenTable

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Maximum relative difference of logits, by the less precise dtype of the two computations. The
weights are identical; only the order of summation differs. In bfloat16 this causes 1 to 3% over
some tens of layers; a wrong rotary base or a random head causes 30 to 140%."""

_TOKENS = 64


def check_exportable(config: Any) -> None:
    """Add a token to a model of this configuration, and convert it to the files' names and back.

    The model has no weights.

    Raises:
        UserError: the exported model could not be loaded again.
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
        raise UserError(refused + first_line(error, 200)) from error
    if again is not type(model):
        raise UserError(f"{refused}it would load as {again.__name__}")
    if len(rows) > 1:
        raise UserError(f"{refused}its input and output vocabularies differ")
    changed = [
        name
        for name in sorted({*state, *opened})
        if name not in state or name not in opened or state[name].shape != opened[name].shape
    ]
    if changed:
        raise UserError(
            f"{refused}{', '.join(changed[:3])} would change when the files are loaded again"
        )


def choose_conversation(table: TokenTable) -> int:
    """Return the row of the shortest conversation of 64 tokens or more, or of the longest."""
    lengths = np.asarray(table.lengths)
    enough = np.flatnonzero(lengths >= _TOKENS)
    return int(enough[lengths[enough].argmin()]) if enough.size else int(lengths.argmax())


def check_export(
    directory: Path, pack: Batch, expected: torch.Tensor, dtype: torch.dtype
) -> float | None:
    """Load an export with transformers and compare its logits with the engine's.

    Args:
        directory: the export.
        pack: one conversation, on the CPU.
        expected: the engine's logits at its label positions, shape (labels, vocabulary).
        dtype: dtype in which the engine computed them.

    Returns:
        The median over positions of the relative difference of logits. None if the host's free
        memory does not hold the model; then only names and shapes are compared, without weights.

    Raises:
        UserError: it cannot be loaded, a tensor is missing, or the logits differ.
    """
    opened = load_dtype(directory)
    model = _open(directory, opened)
    if opened is None:
        return None
    return check_logits(model, pack, expected, opened, dtype)


def check_logits(
    model: Any,
    pack: Batch,
    expected: torch.Tensor,
    opened: torch.dtype,
    dtype: torch.dtype,
    *,
    vocabulary: int | None = None,
) -> float:
    """Return the relative difference of a loaded model's logits from the engine's.

    `opened` is the dtype of the loaded model, `dtype` that of the engine. Logits of ids from
    `vocabulary` on are removed.

    Raises:
        UserError: rounding does not explain it.
    """
    difference = logits_difference(model, pack, expected, vocabulary=vocabulary)
    tolerance = max(TOLERANCE[opened], TOLERANCE[dtype])
    if not difference <= tolerance:
        raise UserError(
            f"the exported model's logits differ by {difference:.1%} from those of training "
            f"(rounding explains at most {tolerance:.1%}); the export is not published, the last "
            "checkpoint is kept"
        )
    return difference


@torch.no_grad()
def logits_difference(
    model: Any, pack: Batch, expected: torch.Tensor, *, vocabulary: int | None = None
) -> float:
    """Return the relative difference of a loaded model's logits from the engine's."""
    logits = model(input_ids=pack.input_ids, use_cache=False).logits[0][pack.label_positions]
    return relative_difference(logits[:, :vocabulary].float(), expected)


def relative_difference(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the median over positions of |difference| / |expected|, after removing the mean.

    Softmax ignores a constant that is added to all logits of a position.
    """
    if logits.shape != expected.shape:
        return float("inf")
    centred = expected - expected.mean(-1, keepdim=True)
    difference = logits - logits.mean(-1, keepdim=True) - centred
    scale = centred.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    return float((difference.norm(dim=-1) / scale).median())


def load_dtype(directory: Path) -> torch.dtype | None:
    """Return the dtype in which this host's free memory holds an exported model, or None."""
    return dtype_for(sum(path.stat().st_size for path in directory.glob("*.safetensors")))


def dtype_for(in_bfloat16: int) -> torch.dtype | None:
    """Return the dtype in which free memory holds a model of this many bytes in bfloat16."""
    available = psutil.virtual_memory().available * 0.8
    if 2 * in_bfloat16 <= available:
        return torch.float32
    return torch.bfloat16 if in_bfloat16 <= available else None


def _open(directory: Path, dtype: torch.dtype | None) -> Any:
    """Load the exported model, on the meta device if `dtype` is None."""
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"device_map": "meta"} if dtype is None else {"dtype": dtype}
    failed = "the exported model cannot be loaded, and is not published; the last checkpoint is "
    try:
        opened: Any = AutoModelForCausalLM.from_pretrained(
            directory, output_loading_info=True, local_files_only=True, **options
        )
    except Exception as error:  # whatever a model's code raises
        raise UserError(f"{failed}kept: {first_line(error, 200)}") from error
    model, info = opened
    problems = {problem: found for problem, found in info.items() if found}
    if problems:
        problem, found = next(iter(problems.items()))
        names = ", ".join(map(str, sorted(found, key=str)[:3]))
        raise UserError(f"{failed}kept: {problem.replace('_', ' ')}: {names}")
    return model.eval()
