"""The demo's own parts; tests/end_to_end runs it whole."""

import json

from ochat_ray.demo import pipeline


def test_the_summary_is_read_from_the_manifests(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "RUN", tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "model").mkdir()
    data = {
        "counts": {"read": 1000, "kept": 990, "dropped": {"torn": 10}},
        "tokens": {
            "train": {"tokens": 5000, "supervised_tokens": 4000},
            "eval": {"tokens": 70, "supervised_tokens": 60},
        },
    }
    model = {
        "eval_before": {"loss": 2.5, "end_of_turn": 0.0},
        "eval_after": {"loss": 1.5, "end_of_turn": 0.5},
        "step": 3,
        "zero_stage": 3,
        "world_size": 2,
        "conversations": 7,
    }
    (tmp_path / "data/manifest.json").write_text(json.dumps(data))
    (tmp_path / "model/ochat.json").write_text(json.dumps(model))
    answer = pipeline.Answer(question="Why?", text="So\nit is.", finish_reason="stop", tokens=4)
    text = pipeline.summary({"prepare": 10.4, "train": 20.0}, [answer])
    for expected in (
        "1,000 read", "990 kept", "10 dropped: torn", "5,000 to train on, 4,000 of them",
        "2.5000 before", "1.5000 after 3 ZeRO-3 steps on 2 workers, of 7 short conversations",
        "So it is.", "(stop, 4 tokens)", "30 in all", f"{tmp_path}/data/report.html",
    ):  # fmt: skip
        assert expected in text


def test_ray_s_own_information_is_left_out_and_the_jobs_lines_are_not():
    assert pipeline._RAY_INFO.match("2026-11-22 18:40:01,658\tSUCC cli.py:66 -- x")
    assert pipeline._RAY_INFO.match("2026-11-22 18:40:07,001\tINFO worker.py:1691 -- Using")
    assert not pipeline._RAY_INFO.match("2026-11-22 18:41:16,388\tERR cli.py:75 -- failed")
    assert not pipeline._RAY_INFO.match("     clean  2,000 conversations")


def test_an_unknown_argument_is_status_2(capsys):
    assert pipeline.main(["--nope"]) == 2
    assert "make demo" in capsys.readouterr().err


def test_stop_without_anything_to_stop_is_one_clear_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "_PROCESSES", tmp_path / "processes.json")
    assert pipeline.main(["stop"]) == 2
    assert capsys.readouterr().err == ("demo: nothing to stop: no demo was left up with KEEP=1\n")
