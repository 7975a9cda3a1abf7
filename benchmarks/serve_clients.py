"""Try the usual calls of clients on a server, and write the table of docs/serving.md.

    python benchmarks/serve_clients.py --write
    python benchmarks/serve_clients.py --only openai litellm --calls tools

Installs each client at the version below into an environment of its own (needs uv, and npm for
JavaScript), and starts its own Ray and one server: a tiny Llama whose weights prefer certain
characters, so that it writes nonsense, but short and complete JSON where a schema requires it.
A call works if the client accepts the answer. Exit status 1 if a call fails.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
CALLS = Path(__file__).parent / "clients"
BEGIN, END = "<!-- benchmarks/serve_clients.py -->", "<!-- end -->"
CONTEXT = 16384


@dataclass(frozen=True, kw_only=True)
class Client:
    """Client of the table.

    Attributes:
        name: As users know it.
        packages: Requirements of pip or npm, the client first.
        script: File in `clients/`, and its name of the client.
    """

    name: str
    packages: tuple[str, ...] = ()
    script: tuple[str, str]

    @property
    def is_js(self) -> bool:
        return self.script[0].endswith(".mjs")

    @property
    def folder(self) -> str:
        return self.script[1] + (".js" if self.is_js else "")

    @property
    def version(self) -> str:
        if not self.packages:
            return ""
        return self.packages[0].rpartition("@" if self.is_js else "==")[2]


def _python(name: str, *packages: str) -> Client:
    package = packages[0].partition("==")[0].partition("[")[0] if packages else "histories"
    return Client(name=name, packages=packages, script=("run_calls.py", package))


CLIENTS = (
    _python("openai (Python)", "openai==3.57.0"),
    Client(
        name="openai (JavaScript)",
        packages=("openai@6.49.0", "zod@4.6.7"),
        script=("js_calls.mjs", "openai"),
    ),
    _python("LiteLLM", "litellm==1.110.2"),
    _python("LangChain", "langchain-openai==1.7.4", "langchain==1.5.2"),
    _python(
        "LlamaIndex",
        "llama-index-llms-openai-like==0.8.1",
        "llama-index-embeddings-openai-like==0.4.0",
    ),
    _python("Pydantic AI", "pydantic-ai-slim[openai]==2.68.0"),
    _python("Instructor", "instructor==1.17.0"),
    _python("smolagents", "smolagents[openai]==1.26.0"),
    Client(
        name="Vercel AI SDK",
        packages=(
            "ai@6.0.326",
            "@ai-sdk/openai@3.0.141",
            "@ai-sdk/openai-compatible@2.0.92",
            "zod@4.6.7",
        ),
        script=("js_calls.mjs", "ai"),
    ),
    _python("GuideLLM", "guidellm==0.8.1"),
    _python("lm-evaluation-harness", "lm-eval[api]==0.4.13", "transformers==5.19.0"),
    _python("histories of aider, Open WebUI, LibreChat"),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", help="packages, such as openai or ai")
    parser.add_argument("--calls", default="", help="regex of the calls to try")
    parser.add_argument("--environments", type=Path, default=ROOT / "build" / "clients")
    parser.add_argument("--url", help="a server that runs already, with /v1; needs --model")
    parser.add_argument("--model", help="directory of that server's model, served as `tiny`")
    parser.add_argument("--write", action="store_true", help="write the table to docs/serving.md")
    arguments = parser.parse_args()
    clients = [c for c in CLIENTS if not arguments.only or c.script[1] in arguments.only]
    python = {client: install(client, arguments.environments) for client in clients}
    results = {}
    with server(arguments.url, arguments.model) as (url, model):
        for client in clients:
            print(f"{client.name} {client.version}", flush=True)
            results[client] = try_calls(
                client,
                python[client],
                arguments.environments / client.folder,
                url,
                model,
                arguments.calls,
            )
    table = "\n".join(rows(results))
    print(table)
    if arguments.write:
        page = ROOT / "docs" / "serving.md"
        before, _, rest = page.read_text().partition(BEGIN)
        after = rest.partition(END)[2]
        page.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}")
    failed = [result for found in results.values() for _, result in found if "FAILS" in result]
    sys.exit(1 if failed else 0)


def install(client: Client, folder: Path) -> list[str]:
    """Install a client; return the command that runs a script with it."""
    folder = folder.absolute() / client.folder
    if client.is_js:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "package.json").exists():
            (folder / "package.json").write_text('{"private": true}')
        _run("npm", "install", "--silent", "--save-exact", *client.packages, cwd=folder)
        return ["node"]
    if not client.packages:
        return [sys.executable]
    python = folder / "bin" / "python"
    _run("uv", "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(folder))
    _run("uv", "pip", "install", "--quiet", "--python", str(python), *client.packages)
    return [str(python)]


def _run(*command: str, cwd: Path = ROOT) -> None:
    subprocess.run(command, check=True, cwd=cwd)


def try_calls(
    client: Client, command: list[str], folder: Path, url: str, model: str, calls: str
) -> list[tuple[str, str]]:
    """Return the calls of a client and their results."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "ONLY_CALLS": calls,
        "OPENAI_API_KEY": "none",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "ANONYMIZED_TELEMETRY": "false",
        "LLAMA_INDEX_CACHE_DIR": tempfile.gettempdir(),
    }
    script, name = client.script
    process = subprocess.Popen(
        [*command, str(CALLS / script), name, url, *([] if client.is_js else [model])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=folder if client.is_js else ROOT,
    )
    output, errors = process.communicate(timeout=1800)
    found = []
    for line in output.splitlines():
        if line.startswith('{"call"'):
            row = json.loads(line)
            print(f"  {row['call']}: {row['result']}  [{row.get('seconds', '')} s]", flush=True)
            found.append((row["call"], row["result"]))
    if process.returncode != 0:
        found.append(("all calls", f"FAILS: {errors.strip()[-1500:]}"))
        print(errors[-3000:], file=sys.stderr)
    return found


def rows(results: dict[Client, list[tuple[str, str]]]) -> Iterator[str]:
    """Yield the lines of the table: one row per client and result."""
    yield ""
    yield "| client | version | calls | result |"
    yield "|---|---|---|---|"
    for client, found in results.items():
        by_result: defaultdict[str, list[str]] = defaultdict(list)
        for call, result in found:
            by_result[result].append(call)
        for result, calls in by_result.items():
            cells = (client.name, client.version, "; ".join(calls), result)
            yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""


@contextmanager
def server(url: str | None, model: str | None) -> Iterator[tuple[str, str]]:
    """Start Ray and a server, unless there is one; yield its address and its model."""
    if url is not None:
        assert model is not None, "--url needs --model"
        yield url, model
        return
    import ray
    from ray import serve

    from ochat_ray.cluster.local_cluster import free_port
    from ochat_ray.serve import ServeArgs, app

    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        arguments = {
            "model": tiny_model(Path(folder)), "served_model_name": "tiny", "ui": False,
            "engine": "transformers", "num_cpus": 1, "max_replicas": 1, "dtype": "float32",
            "context_length": CONTEXT, "kv_cache_gib": 0.25,
        }  # fmt: skip
        if "embeddings" in ServeArgs.model_fields:
            arguments["embeddings"] = True
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            serve.run(app(ServeArgs.model_validate(arguments)))
            yield f"http://127.0.0.1:{port}/v1", folder
        finally:
            serve.shutdown()
            ray.shutdown()


def tiny_model(folder: Path) -> str:
    """Write a Llama with a byte tokenizer that prefers the ends of strings, objects and answers."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<s>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "<|end_of_turn|>"])
    special: dict[str, Any] = {"bos_token": "<s>", "eos_token": "<|end_of_turn|>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.save_pretrained(folder)

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=CONTEXT,
        bos_token_id=0, eos_token_id=len(fast) - 1, tie_word_embeddings=False,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config)
    likely = dict.fromkeys(b"abcdefghijklmnopqrstuvwxyz .", 2.0)
    likely |= dict.fromkeys(b"0123456789,", 1.5) | dict.fromkeys(b'"}]', 4.0)
    alphabet = pre_tokenizers.ByteLevel(add_prefix_space=False)
    with torch.no_grad():
        # The first dimension of each hidden state is a constant, about 8 after the last norm.
        model.model.embed_tokens.weight[:, 0] = 8.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = 0.0
            layer.mlp.down_proj.weight[0] = 0.0
        model.lm_head.weight[:, 0] = -0.5
        for byte, logit in likely.items():
            ((letter, _),) = alphabet.pre_tokenize_str(chr(byte))
            model.lm_head.weight[vocabulary[letter], 0] = logit / 8
        model.lm_head.weight[-1, 0] = 3.5 / 8
    model.save_pretrained(folder)
    (folder / "ochat.json").write_text(json.dumps({"model_type": "openchat"}))
    return str(folder)


if __name__ == "__main__":
    main()
