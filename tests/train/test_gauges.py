"""Gauges of a training."""

from ochat_ray.run_dir import RunDir
from ochat_ray.train import gauges
from ochat_ray.train.metrics import Metrics


def test_the_latest_values_are_gauges_named_by_the_output(monkeypatch, tmp_path):
    values = {}

    class Gauge:
        def __init__(self, name, description, tag_keys):
            assert tag_keys == ("output",)
            self.name = name

        def set(self, value, tags):
            values[self.name] = (value, tags["output"])

    monkeypatch.setattr(gauges, "Gauge", Gauge)
    monkeypatch.setattr(gauges.time, "time", lambda: 1000.0)
    with Metrics(RunDir.open(str(tmp_path)), sinks=[gauges.Gauges("s3://b/model")]) as metrics:
        metrics.write({"step": 6, "loss": 2.0, "exchange": 0.1})
        metrics.write({"step": 7, "loss": 1.5, "exchange": 0.2})
        metrics.write({"step": 7, "eval_loss": 1.25, "eval_end_of_turn": 0.5})
    assert values == {
        "ochat_ray_train_step": (7, "s3://b/model"),
        "ochat_ray_train_loss": (1.5, "s3://b/model"),
        "ochat_ray_train_exchange": (0.2, "s3://b/model"),
        "ochat_ray_eval_loss": (1.25, "s3://b/model"),
        "ochat_ray_eval_end_of_turn": (0.5, "s3://b/model"),
        "ochat_ray_train_progress_timestamp_seconds": (1000.0, "s3://b/model"),
    }
