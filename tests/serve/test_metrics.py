from __future__ import annotations

import json
import re
from pathlib import Path

from ochat_ray.serve.engines.base import Capacity
from ochat_ray.serve.metrics import Metrics, Record

DASHBOARD = Path(__file__).parents[2] / "docs/grafana-serving.json"

LOAD = Capacity(
    context_length=10, kv_tokens=200, kv_tokens_used=50, vocabulary=5, running=3, waiting=1
)


def ended(**fields):
    metrics = Metrics()
    metrics.begin()
    record = Record(request_id="r", route="/v1/models", model="m", **{"replica": "a"} | fields)
    metrics.end(record)
    return metrics, record


def test_the_dashboard_asks_for_metrics_that_there_are():
    metrics, _ = ended(
        status=200, choices=1, prompt_tokens=5, completion_tokens=9, ttft_s=0.1, queue_s=0.01
    )
    exposed = metrics.expose("m", {"a": LOAD}).decode()
    there = set(re.findall(r"^(ochat_ray_\w+)[{ ]", exposed, flags=re.MULTILINE))
    panels = json.loads(DASHBOARD.read_text())["panels"]
    asked = {
        name
        for panel in panels
        for target in panel["targets"]
        for name in re.findall(r"ochat_ray_\w+", target["expr"])
    }
    assert asked <= there
    # And nothing is measured that the dashboard does not show.
    shown = {re.sub(r"_(bucket|total)$", "", name) for name in asked}
    kept = {re.sub(r"_(bucket|sum|count|total|created)$", "", name) for name in there}
    assert kept == shown


def test_the_load_is_each_replicas_own_and_gone_with_it():
    metrics = Metrics()
    both = metrics.expose("m", {"a": LOAD, "b": LOAD}).decode()
    assert 'ochat_ray_running_requests{model="m",replica="b"} 3.0' in both
    assert 'ochat_ray_kv_cache_usage_ratio{model="m",replica="a"} 0.25' in both
    assert 'replica="b"' not in metrics.expose("m", {"a": LOAD}).decode()


def test_time_per_output_token_is_of_those_after_the_first():
    _, record = ended(choices=1, completion_tokens=5, ttft_s=1.0)
    record.seconds = 3.0
    assert record.tpot_s == 0.5
    record.choices, record.completion_tokens = 2, 10
    assert record.tpot_s == 0.5
    record.completion_tokens = 2
    assert record.tpot_s is None


def test_a_request_that_no_replica_took_counts_no_tokens():
    metrics, _ = ended(replica="", status=429, code="overloaded", choices=1, prompt_tokens=5)
    text = metrics.expose("m", {}).decode()
    assert 'code="overloaded"' in text
    assert "tokens_total{" not in text
