"""Print the prompt ids of conversations, by transformers or by llama.cpp; see chat_exports.py.

ask_export.py transformers|llama.cpp DIRECTORY < CONVERSATIONS.json
"""

import json
import os
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["HF_HUB_OFFLINE"] = "1"


def by_transformers(directory: str, conversations: list[Any]) -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    return [
        tokenizer.apply_chat_template(c, add_generation_prompt=True, return_dict=False)
        for c in conversations
    ]


def by_llama_cpp(directory: str, conversations: list[Any]) -> list[list[int]]:
    lines = os.dup(1)
    os.dup2(2, 1)  # what the converter and llama.cpp print
    llama_cpp = Path(__file__).resolve().parent.parent / ".venv-exports/llama.cpp"
    sys.path[:0] = [str(llama_cpp), str(llama_cpp / "gguf-py")]
    import convert_hf_to_gguf
    import xllamacpp

    with tempfile.TemporaryDirectory() as scratch:
        file = str(Path(scratch) / "model.gguf")
        sys.argv = ["convert_hf_to_gguf.py", directory, "--outfile", file, "--outtype", "bf16"]
        convert_hf_to_gguf.main()
        params = xllamacpp.CommonParams()
        params.model.path = file
        params.n_ctx, params.warmup, params.use_jinja = 512, False, True
        server = xllamacpp.Server(params)
        found = [ids_of(server.listening_address, c) for c in conversations]
    os.dup2(lines, 1)
    return found


def ids_of(address: str, conversation: Any) -> list[int]:
    prompt = post(address, "/apply-template", {"messages": conversation})["prompt"]
    # As llama.cpp tokenizes a chat's prompt: with BOS, unless the template wrote it.
    asked = {"content": prompt, "add_special": True, "parse_special": True}
    ids: list[int] = post(address, "/tokenize", asked)["tokens"]
    return ids


def post(address: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    url = address if address.startswith("http") else f"http://{address}"
    request = urllib.request.Request(url + path, json.dumps(body).encode())  # noqa: S310 - local
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        found: dict[str, Any] = json.load(answer)
        return found


def main() -> None:
    ways = {"transformers": by_transformers, "llama.cpp": by_llama_cpp}
    found = ways[sys.argv[1]](sys.argv[2], json.load(sys.stdin))
    print(json.dumps(found), flush=True)
    os._exit(0)  # llama.cpp's threads may wait for their server


if __name__ == "__main__":
    main()
