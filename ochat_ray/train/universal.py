"""Universal checkpoints that every ZeRO stage opens, whichever stage wrote them.

DeepSpeed's converter writes ZeRO-1 and 2's, and ZeRO-3's checkpoints in two layouts, and each stage
reads its own alone (DeepSpeed 0.19.8: the other one ends in an empty AssertionError, or, without
`step`, in AdamW's step count being that of a new optimizer). What each layout lacks is added here:

    mp_rank_00_model_states.pt, zero_pp_rank_0_mp_rank_00_model_states.pt    same content
    zero/optimizer_state.pt      ds_version, param_groups (1, 2); optimizer_state_dict (3)
    zero/NAME/{fp32,exp_avg,exp_avg_sq}.pt    {"param": tensor} (1, 2; 3 reads both)
    zero/NAME/step.pt            (1, 2)
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

_MODEL_STATES = ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt")
_OPTIMIZER = "optimizer_state_dict"


def complete_for_all_stages(checkpoint: Path, version: str) -> None:
    """Add to a converted checkpoint what the other ZeRO stages look for.

    `version` is DeepSpeed's.
    """
    written, missing = (
        _MODEL_STATES if (checkpoint / _MODEL_STATES[0]).exists() else reversed(_MODEL_STATES)
    )
    shutil.copyfile(checkpoint / written, checkpoint / missing)
    zero = checkpoint / "zero"
    state = _load(zero / "optimizer_state.pt")
    if _OPTIMIZER in state:
        step = state[_OPTIMIZER]["state"][0]["step"]
        state.setdefault("ds_version", version)
        for folder in sorted(path.parent for path in zero.rglob("fp32.pt")):
            for name in ("fp32", "exp_avg", "exp_avg_sq"):
                tensor = _load(folder / f"{name}.pt")
                if torch.is_tensor(tensor):
                    torch.save({"param": tensor}, folder / f"{name}.pt")
            torch.save(step, folder / "step.pt")
    else:
        step = _load(next(zero.rglob("step.pt")))
        groups = state["param_groups"]
        state[_OPTIMIZER] = {"state": {0: {"step": step}}, "param_groups": groups}
    torch.save(state, zero / "optimizer_state.pt")


def _load(path: Path) -> Any:
    # The files are the converter's, with objects of DeepSpeed in them.
    return torch.load(path, map_location="cpu", weights_only=False)
