"""Usual calls of GuideLLM and lm-evaluation-harness."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from client_common import MODEL, Calls, Server


def guidellm_calls(server: Server) -> Calls:
    def run(path: str) -> Callable[[], None]:
        def benchmark() -> None:
            with tempfile.TemporaryDirectory() as folder:
                report = Path(folder) / "report.json"
                target = f"target={server.root},model={MODEL},request_format={path}"
                done = _command(
                    "guidellm", "run", "--disable-console",
                    "--backend", f"kind=openai_http,{target}",
                    "--profile", "kind=synchronous", "--constraint", "kind=max_requests,count=3",
                    "--tokenizer", f"kind=huggingface_auto,model={server.model_directory}",
                    "--data", "kind=synthetic_text,prompt_tokens=64,output_tokens=8",
                    "--output", f"kind=json,path={report}",
                )  # fmt: skip
                assert report.exists(), done[-300:]
                (result,) = json.loads(report.read_text())["benchmarks"]
                totals = result["metrics"]["request_totals"]
                assert (totals["successful"], totals["errored"]) == (3, 0), totals

        return benchmark

    return {
        "run on chat completions": run("/v1/chat/completions"),
        "run on completions": run("/v1/completions"),
        "run on responses": run("/v1/responses"),
    }


def lm_eval_calls(server: Server) -> Calls:
    def run(kind: str, path: str, task: str, *options: str, **arguments: str) -> Callable[[], None]:
        def evaluate() -> None:
            given = {"base_url": f"{server.url}{path}", "model": MODEL, "max_retries": "1"}
            with tempfile.TemporaryDirectory() as folder:
                _write_tasks(Path(folder))
                _command(
                    "lm_eval", "run", "--model", kind, "--tasks", task, "--include_path", folder,
                    "--model_args", ",".join(f"{k}={v}" for k, v in (given | arguments).items()),
                    "--output_path", f"{folder}/out", *options,
                )  # fmt: skip
                (report,) = Path(folder).glob("out/**/results*.json")
                scores = json.loads(report.read_text())["results"][task]
                assert any(isinstance(value, float) for value in scores.values()), scores

        return evaluate

    local = {"tokenizer": server.model_directory}
    completions, chat = "/completions", "/chat/completions"
    return {
        "local-completions, multiple choice": run(
            "local-completions", completions, "choose", **local
        ),
        "local-completions, multiple choice, batches": run(
            "local-completions", completions, "choose", "--batch_size", "4", **local
        ),
        "local-completions, multiple choice, text": run(
            "local-completions", completions, "choose", **local, tokenized_requests="False"
        ),
        "local-completions, generation": run("local-completions", completions, "write", **local),
        "local-chat-completions, generation": run(
            "local-chat-completions", chat, "write", "--apply_chat_template"
        ),
    }


def _write_tasks(folder: Path) -> None:
    rows = [{"q": f"{n} + 1 =", "a": [f" {n + 1}", f" {n}"], "right": 0} for n in range(4)]
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = (
        f"dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {data}\ntest_split: test\n"
        'doc_to_text: "{{q}}"\n'
    )
    (folder / "choose.yaml").write_text(
        f'task: choose\noutput_type: multiple_choice\n{common}doc_to_choice: "{{{{a}}}}"\n'
        "doc_to_target: right\nmetric_list:\n  - metric: acc\n"
    )
    (folder / "write.yaml").write_text(
        f'task: write\noutput_type: generate_until\n{common}doc_to_target: "{{{{a[0]}}}}"\n'
        'generation_kwargs:\n  until: ["\\n", "Q:", "</s>", "<|im_end|>", "##"]\n'
        "  max_gen_toks: 8\n  do_sample: false\n  temperature: 0.0\n"
        "metric_list:\n  - metric: exact_match\n"
    )


def _command(*arguments: str) -> str:
    """Run a command of this environment; return its output."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OPENAI_API_KEY": "none"}
    done = subprocess.run(
        [str(Path(sys.executable).with_name(arguments[0])), *arguments[1:]],
        env=os.environ | offline,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-1500:]
    return output
