"""Universal checkpoints that every ZeRO stage can load, regardless of the stage that wrote them.

DeepSpeed's converter writes checkpoints of ZeRO-1 and 2 and of ZeRO-3 in two layouts, and each
stage reads only its own (DeepSpeed 0.19.8: the other one raises an empty AssertionError or, without
`step`, resets AdamW's step count). This module adds the missing parts of each layout:

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
    """Add the files and keys of the other ZeRO stages to a converted checkpoint.

    `version` is DeepSpeed's version.
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
    # Files of the converter, which contain objects of DeepSpeed.
    return torch.load(path, map_location="cpu", weights_only=False)
