"""Tasks of lm-evaluation-harness on a served model: GSM8K, IFEval and others without a judge.

lm-eval is a program of its own environment (`pip install "lm-eval[api,ifeval]"`). Its results by
question become a results.json per task, so that tasks are compared as other evaluations are.

Source: EleutherAI/lm-evaluation-harness 0.4.13: command line, results_*.json, samples_*.jsonl.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ochat_ray.errors import UserError
from ochat_ray.evaluate.client import Client
from ochat_ray.evaluate.comparison import compare
from ochat_ray.evaluate.config import EvaluateConfig
from ochat_ray.evaluate.key_files import key_for
from ochat_ray.evaluate.outputs import RESULTS, claim
from ochat_ray.evaluate.records import key_of, make_folder
from ochat_ray.evaluate.stats import Part, estimate
from ochat_ray.run_dir import RunDir


def run_tasks(config: EvaluateConfig) -> dict[str, Any]:
    """Run the tasks for each model and write results.json per task, and a comparison of all.

    Raises:
        UserError: lm-eval is missing or failed, or the endpoint cannot be reached.
    """
    program = shutil.which(config.lm_eval)
    if program is None:
        raise UserError(
            f"--lm-eval {config.lm_eval}: not found; install it in an environment of its own with "
            '`pip install "lm-eval[api,ifeval]"`, and give the path of its lm_eval'
        )
    models = list(dict.fromkeys(config.model))
    key = key_for("models", config.url, config.url)
    entries = asyncio.run(_describe(config, models, key))
    found = {model: _run(program, config, model, key) for model in models}
    tasks = list(dict.fromkeys(task for own in found.values() for task in own))
    for task in tasks:
        scored = {model: own[task] for model, own in found.items() if task in own}
        results = _results(config, task, scored) | {"models": entries}
        output = RunDir.open(f"{config.output}/{task}")
        claim(output, [RESULTS])
        output.write_json(RESULTS, results)
    result = compare([f"{config.output}/{task}" for task in tasks], config.output, seed=config.seed)
    return {**result, "tasks": tasks}


async def _describe(config: EvaluateConfig, models: Sequence[str], key: str) -> dict[str, Any]:
    async with Client(config.url, key, timeout_s=config.timeout_s) as client:
        return {model: await client.describe(model) for model in models}


def _run(program: str, config: EvaluateConfig, model: str, key: str) -> dict[str, dict[str, Any]]:
    """Run lm-eval for one model; return samples and metadata by task."""
    folder = Path(config.output).expanduser() / "lm_eval" / key_of(model)[:12]
    make_folder(folder)
    earlier = set(folder.rglob("results_*.json"))
    arguments = {
        "model": model,
        "base_url": f"{config.url.rstrip('/')}/chat/completions",
        "num_concurrent": config.max_concurrency,
        "timeout": int(config.timeout_s),
        "max_retries": config.attempts,
    }
    limit = ["--limit", str(config.limit)] if config.limit is not None else []
    command = [
        program, "--model", "local-chat-completions", "--tasks", ",".join(config.tasks),
        "--model_args", json.dumps(arguments), "--apply_chat_template", "--log_samples",
        "--output_path", str(folder), "--seed", str(config.seed), *limit,
        *shlex.split(config.lm_eval_args),
    ]  # fmt: skip
    print(f"$ {shlex.join(command)}", file=sys.stderr)
    # An endpoint without authentication ignores the key; lm-eval demands one.
    environment = {**os.environ, "OPENAI_API_KEY": key or "none"}
    status = subprocess.run(command, env=environment, stdout=sys.stderr, check=False).returncode
    new = sorted(set(folder.rglob("results_*.json")) - earlier)
    if status or not new:
        raise UserError(f"lm_eval failed for {model} with status {status}; its reason is above")
    return _read(new[-1])


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """Return each task's samples and metadata from lm-eval's results file and its neighbors."""
    results = json.loads(path.read_text(encoding="utf-8"))
    stamp = path.name.removeprefix("results_").removesuffix(".json")
    found = {}
    for task, values in results["results"].items():
        samples = path.with_name(f"samples_{task}_{stamp}.jsonl")
        if samples.exists():  # a group of tasks has none of its own
            lines = samples.read_text(encoding="utf-8").splitlines()
            rows = [json.loads(line) for line in lines if line.strip()]
            found[task] = {
                "parts": parts_of(rows),
                "values": values,
                "version": results.get("versions", {}).get(task),
                "shots": results.get("n-shot", {}).get(task),
                "hashes": sorted({str(row.get("doc_hash", row["doc_id"])) for row in rows}),
                "prompts": results.get("task_hashes", {}).get(task, ""),
                "lm_eval": results.get("lm_eval_version", ""),
            }
    if not found:
        raise UserError(f"{path} has no samples by question")
    return found


def parts_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Part]]:
    """Return each question's contribution to each metric, in percent.

    The value of a metric is a number, or a list of them, such as one per instruction of IFEval.
    """
    found: dict[str, dict[str, Part]] = {}
    for row in rows:
        for metric in row["metrics"]:
            value = row[metric]
            values = [float(one) for one in (value if isinstance(value, list) else [value])]
            name = f"{metric},{row['filter']}"
            part = Part(100 * sum(values), len(values))
            found.setdefault(name, {})[str(row["doc_id"])] = part
    return found


def _results(
    config: EvaluateConfig, task: str, scored: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    first = next(iter(scored.values()))
    metric = next(iter(first["parts"]))
    return {
        "suite": task,
        "unit": f"% {metric.removesuffix(',none')}",
        "baseline": None,
        "judge": f"lm-eval {first['lm_eval']}".strip(),
        "scores": [_score(model, own, metric, config.seed) for model, own in scored.items()],
        "questions": len(first["parts"][metric]),
        "questions_digest": key_of(first["hashes"]),
        "prompts_digest": key_of(first["prompts"], first["version"], first["shots"]),
        "shots": first["shots"],
        "config": asdict(config),
        "version": version("ochat-ray"),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _score(model: str, own: Mapping[str, Any], metric: str, seed: int) -> dict[str, Any]:
    metrics = {name: _estimated(parts, seed) for name, parts in own["parts"].items()}
    return {
        "model": model, **metrics[metric], "metrics": metrics,
        "judgments": len(own["parts"][metric]),
        "failed": 0, "not_judged": 0, "lm_eval": own["values"],
        "by_question": {
            id: [part.numerator, part.denominator] for id, part in own["parts"][metric].items()
        },
    }  # fmt: skip


def _estimated(parts: Mapping[str, Part], seed: int) -> dict[str, float | None]:
    found = estimate(list(parts.values()), seed=seed)
    if found is None:
        return {"score": None, "low": None, "high": None}
    return {"score": found.value, "low": found.low, "high": found.high}
