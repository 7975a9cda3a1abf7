"""Alert rules and dashboards: every metric in them exists, and the rules fire when they should."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from ochat_ray.serve.metrics import Metrics

ROOT = Path(__file__).parent.parent
RULES = ROOT / "deploy/prometheus/alerts.yml"
DASHBOARD = ROOT / "docs/grafana-training.json"

OF_RAY = set(
    """
    ray_gcs_placement_group_count ray_node_disk_free ray_node_disk_usage ray_node_mem_total
    ray_node_mem_used ray_object_store_memory ray_serve_deployment_queued_queries ray_tasks
    """.split()
)
"""Names that a node of Ray 2.60 exports."""


def rules():
    return [
        rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
    ]


def of_training():
    """Return the gauges of the keys that the loop writes to metrics.jsonl."""
    source = (ROOT / "ochat_ray/train/loop.py").read_text()
    step = source.split("def _step(")[1].split("def ")[0].split("return {")[1]
    names = {f"train_{key}" for key in re.findall(r'^ +"(\w+)": ', step, re.MULTILINE)}
    names |= set(re.findall(r'"(eval_\w+)": result', source))
    assert {"train_loss", "eval_loss"} < names
    return {f"ray_ochat_ray_{name}" for name in names | {"train_progress_timestamp_seconds"}}


def of_serving():
    metrics = Metrics()
    text = metrics.expose("m", {}).decode()
    families = {family.name for family in text_string_to_metric_families(text)}
    return {
        f"{name}{suffix}" for name in families for suffix in ("", "_total", "_bucket", "_count")
    }


@pytest.mark.parametrize("name", [rule["alert"] for rule in rules()])
def test_a_rule_reads_metrics_that_exist(name):
    (rule,) = [rule for rule in rules() if rule["alert"] == name]
    used = set(re.findall(r"\b(?:ray_|ochat_ray_)\w+", rule["expr"]))
    assert used
    assert used <= OF_RAY | of_training() | of_serving()
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"]["summary"].endswith(".")


def test_the_dashboard_reads_metrics_that_exist():
    panels = json.loads(DASHBOARD.read_text())["panels"]
    used = {
        metric
        for panel in panels
        for target in panel["targets"]
        for metric in re.findall(r"\bray_\w+", target["expr"])
    }
    assert used <= OF_RAY | of_training()
    assert len({panel["title"] for panel in panels}) == len(panels) == 9


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_the_rules_fire_when_they_should():
    done = subprocess.run(
        ["promtool", "test", "rules", "alerts_test.yml"],
        cwd=RULES.parent,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
