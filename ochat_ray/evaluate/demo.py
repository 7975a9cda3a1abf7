"""Demo evaluation: the demo's model against its base model, judged by the base model.

Its scores test the pipeline, not the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from ochat_ray.demo import assets
from ochat_ray.errors import UserError
from ochat_ray.evaluate import steps
from ochat_ray.evaluate.config import EvaluateConfig
from ochat_ray.recipes import DEMO, default_directory

MODEL = Path(default_directory(DEMO, "model"))
OUTPUT = Path(default_directory(DEMO, "evaluation"))

Served = Callable[[Mapping[str, str]], AbstractContextManager[Mapping[str, str]]]


def run(config: EvaluateConfig, served: Served) -> dict[str, Any]:
    """Evaluate the demo's model; `served` serves model directories and yields their base URLs.

    Raises:
        UserError: The demo's model does not exist.
    """
    if not (MODEL / "ochat.json").exists():
        raise UserError(
            f"there is no {MODEL}; run `make demo` or the demo's prepare and train first, or give "
            "--questions, --model, --baseline and --judge"
        )
    with resources.as_file(resources.files("ochat_ray.evaluate") / "demo_questions.jsonl") as own:
        demo = replace(
            config,
            questions=str(own),
            output=config.output or str(OUTPUT),
            model=("demo",),
            baseline="base",
            judge="base",
            judge_scores_only=True,
            max_tokens=min(config.max_tokens, 128),
        )
        if config.dry_run:
            return steps.run(demo)
        models = {"demo": str(MODEL.absolute()), "base": str(assets.base_model())}
        with served(models) as urls:
            return steps.run(
                replace(demo, url=urls["demo"], baseline_url=urls["base"], judge_url=urls["base"]),
                endpoint_names={url: f"{name} of the demo" for name, url in urls.items()},
            )
