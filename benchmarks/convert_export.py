"""Convert exports to GGUF and run them in llama.cpp.

    python benchmarks/convert_export.py DIRECTORY...

Prints a JSON line for each, as open_export.py does. It converts with llama.cpp's own
convert_hf_to_gguf.py, which lies in .venv-exports/llama.cpp (from the source distribution of
llama-cpp-python), and runs the file with xllamacpp. The logits compared are those of every fourth
position: llama.cpp's server gives those after a prompt. The median over positions is printed,
since a mixture's router may choose another expert where two are equally good.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
LLAMA_CPP = Path(__file__).resolve().parent.parent / ".venv-exports/llama.cpp"
sys.path[:0] = [str(LLAMA_CPP), str(LLAMA_CPP / "gguf-py")]

import convert_hf_to_gguf  # noqa: E402
import numpy as np  # noqa: E402
import xllamacpp  # noqa: E402
from conversion.base import TextModel  # noqa: E402
from gguf import GGUFReader  # noqa: E402

_LETTER = [[40, 1000.0]]
"""A token that is a letter is chosen: llama.cpp gives no logits where an answer ends or begins in
the middle of a character. The bias is not in the logits that it gives."""


def pre_tokenizer(self: TextModel, tokenizer: object) -> str:  # noqa: ARG001
    """Return a name in place of the converter's lookup by a hash of ids, which no tiny one has."""
    return "gpt-2"


def convert(directory: str, file: Path) -> None:
    """Write an export as a GGUF file of float32 tensors."""
    TextModel.get_vocab_base_pre = pre_tokenizer
    sys.argv = ["convert_hf_to_gguf.py", directory, "--outfile", str(file), "--outtype", "f32"]
    convert_hf_to_gguf.main()


def log_probabilities(file: Path, prompts: list[list[int]], vocabulary: int) -> np.ndarray:
    """llama.cpp's log-probabilities of every token after each prompt; NaN where it tells none."""
    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx = 256
    params.warmup = False
    params.cpuparams.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server = xllamacpp.Server(params)
    result = np.full((len(prompts), vocabulary), np.nan)
    for row, prompt in zip(result, prompts, strict=True):
        answer = server.handle_completions(
            {"prompt": prompt, "max_tokens": 1, "logprobs": vocabulary, "logit_bias": _LETTER}
        )
        if "choices" not in answer:
            raise RuntimeError(f"llama.cpp answers {answer}")
        for token in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
            row[token["id"]] = token["logprob"]
    return result


def converted(directory: str, scratch: Path) -> dict:
    """Return the result of one export, printed as a JSON line."""
    file = scratch / "model.gguf"
    convert(directory, file)
    field = GGUFReader(file).fields["tokenizer.ggml.eos_token_id"]
    reference = np.load(f"{directory}/reference.npz")
    ids, logits = reference["ids"][0].tolist(), reference["logits"].astype(np.float64)
    lengths = range(4, len(ids) + 1, 4)
    logits = logits[[length - 1 for length in lengths]]
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    found = log_probabilities(file, [ids[:length] for length in lengths], logits.shape[-1])
    if not np.isfinite(found).all():
        return {"problem": f"llama.cpp gives no logits of {np.isnan(found).sum()} tokens"}
    difference = np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    return {"difference": float(np.median(difference)), "eos": int(field.parts[field.data[0]][0])}


def main() -> None:
    # What the converter and llama.cpp print must not be among the lines.
    lines = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for directory in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as scratch:
            try:
                line = converted(directory, Path(scratch))
            except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it raises
                first = (str(error).strip().splitlines() or [""])[0][:120]
                line = {"problem": f"{type(error).__name__}: {first}"}
        print(json.dumps(line), file=lines, flush=True)
    lines.flush()
    os._exit(0)  # llama.cpp's threads may wait for their server


if __name__ == "__main__":
    main()
