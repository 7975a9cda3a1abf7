"""The rules of the house that a machine can check."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT_RAY = (
    "ochat_ray/cluster/resources.py",
    "ochat_ray/cluster/state.py",
    "ochat_ray/cluster/ray_session.py",
    "ochat_ray/data/pipeline.py",
    "ochat_ray/train/gauges.py",
    "ochat_ray/train/launch.py",
    "ochat_ray/train/loop.py",
    "ochat_ray/train/preemption.py",
    "ochat_ray/train/process_group.py",
    "ochat_ray/train/restore.py",
    "ochat_ray/serve/",
    "ochat_ray/jobs/serve.py",
    "jobs/",
)
PRIVATE_IMPORTS = {
    # Ray 2.60 has no public function that reads RAY_ADDRESS and the last `ray start` (no issue).
    ("ochat_ray/cluster/ray_session.py", "ray._private.services.get_ray_address_from_environment"),
    # Ray 2.60: a client of the GCS without a token aborts the process (no issue).
    (
        "ochat_ray/cluster/state.py",
        "ray._private.authentication.authentication_token_setup.ensure_token_if_auth_enabled",
    ),
    # Ray 2.60: the drivers as Ray's control store has them, without the dashboard (no issue).
    ("ochat_ray/cluster/state.py", "ray._private.state.jobs"),
    # Ray 2.60, issue 52629.
    ("ochat_ray/cluster/state.py", "ray._private.worker.get_dashboard_url"),
    # Ray 2.60: no public function gives the address of Serve's proxy (no issue).
    ("ochat_ray/jobs/serve.py", "ray.serve.context._get_global_client"),
    ("ochat_ray/serve/deployment.py", "ray.serve.context._get_global_client"),
    ("ochat_ray/serve/temporary.py", "ray.serve.context._get_global_client"),
    # torch 2.13: the only common class of convolutions (no issue).
    ("ochat_ray/train/meta_model.py", "torch.nn.modules.conv._ConvNd"),
    # Ray 2.60, issue 37461: gloo on the address of the hostname.
    ("ochat_ray/train/process_group.py", "ray.train.torch.config._TorchBackend"),
    # torch 2.13, issue 189245: a build folder stays locked when its process is killed.
    ("ochat_ray/train/shared_memory_op.py", "torch.utils.cpp_extension._get_build_directory"),
}
"""Private imports of other projects, each with version and issue; a new one is listed here."""

MODULES = sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("ochat_ray/**/*.py"))


def imports(path):
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("path", MODULES)
def test_ray_is_imported_only_at_the_edges(path):
    if not path.startswith(MAY_IMPORT_RAY):
        assert not [name for name in imports(path) if name.split(".")[0] == "ray"]


def test_private_imports_of_other_projects_are_listed():
    found = {
        (path, f"{node.module}.{alias.name}")
        for path in MODULES
        for node in ast.walk(ast.parse((ROOT / path).read_text()))
        if isinstance(node, ast.ImportFrom)
        and not (node.module or "").startswith(("ochat_ray", "__future__"))
        for alias in node.names
        if any(part.startswith("_") for part in f"{node.module}.{alias.name}".split("."))
    }
    assert found == PRIVATE_IMPORTS


@pytest.mark.parametrize("path", MODULES)
def test_files_are_small(path):
    assert len((ROOT / path).read_text().splitlines()) <= 400


@pytest.mark.parametrize("job", sorted(p.name for p in ROOT.glob("jobs/*.py")))
def test_jobs_are_thin(job):
    assert len((ROOT / "jobs" / job).read_text().splitlines()) < 80


@pytest.mark.parametrize(
    "module",
    [
        "ochat_ray",
        "ochat_ray.data.config",
        "ochat_ray.train.config",
        "ochat_ray.template",
    ],
)
def test_nothing_heavy_is_imported_with(module):
    code = (
        f"import sys, {module}; "
        "print([m for m in ('torch', 'transformers', 'ray', 'vllm', 'deepspeed') "
        "if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("ochat_ray.data.markdown", "html_to_markdown"),
        ("ochat_ray.template", "encode"),
        ("ochat_ray.tokenizer", "load_tokenizer"),
        ("ochat_ray.train.packing", "plan"),
        ("ochat_ray.serve", "app"),
        ("ochat_ray.evaluate.alpaca", "win_rate"),
        ("ochat_ray.evaluate.vicuna", "parse_scores"),
        ("ochat_ray.evaluate.mt_bench", "parse_rating"),
    ],
)
def test_public_functions_keep_their_paths(module, name):
    assert callable(getattr(importlib.import_module(module), name))
