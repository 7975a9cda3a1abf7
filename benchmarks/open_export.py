"""Open exports with this environment's transformers, 4 or 5.

    open_export.py DIRECTORY...

Prints a JSON line for each: the relative difference of its logits to those of reference.npz beside
it, and the ids at which transformers and the tokenizer end an answer; or the problem.
"""

import json
import os
import sys
import warnings
from typing import Any

os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["HF_HUB_OFFLINE"] = "1"
warnings.simplefilter("ignore")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig  # noqa: E402


def opened(directory: str) -> dict:
    """Return the result of one export, printed as a JSON line."""
    with_info: Any = AutoModelForCausalLM.from_pretrained(
        directory, output_loading_info=True, torch_dtype=torch.float32
    )
    model, info = with_info
    for problem, names in info.items():
        if names:
            shown = ", ".join(sorted(map(str, names))[:2])
            return {"problem": f"{problem.replace('_', ' ')}: {shown}"}
    reference = np.load(f"{directory}/reference.npz")
    with torch.no_grad():
        ids = torch.from_numpy(reference["ids"])
        logits = model.eval()(input_ids=ids, use_cache=False).logits[0].numpy()
    expected = reference["logits"]
    if logits.shape != expected.shape:
        return {"problem": f"logits of shape {logits.shape}, expected {expected.shape}"}
    difference = np.linalg.norm(logits - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    eos = GenerationConfig.from_pretrained(directory).eos_token_id
    tokenizer = AutoTokenizer.from_pretrained(directory)
    if tokenizer.eos_token_id != eos:
        return {"problem": f"the tokenizer ends at {tokenizer.eos_token_id}, the model at {eos}"}
    return {"difference": float(np.median(difference)), "eos": eos}


def main() -> None:
    for directory in sys.argv[1:]:
        try:
            line = opened(directory)
        except Exception as error:  # noqa: BLE001 - whatever a version of transformers raises
            first = (str(error).strip().splitlines() or [""])[0][:120]
            line = {"problem": f"{type(error).__name__}: {first}"}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
