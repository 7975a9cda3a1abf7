"""Progress of a run in the terminal."""

import time

from ochat_ray.run_dir import RunDir
from ochat_ray.train import follow
from ochat_ray.train.follow import progress_line
from ochat_ray.train.metrics import Metrics

STEP = {
    "step": 2, "total_steps": 4, "loss": 1.5, "learning_rate": 1e-3, "grad_norm": 2.0,
    "tokens": 1000, "seconds": 10.0, "world_size": 2, "mfu": 0.416,
}  # fmt: skip


def test_a_step_s_line():
    assert progress_line(STEP) == (
        "     train  step 2 of 4 · loss 1.5000 · lr 1.00e-03 · grad norm 2.00 · "
        "50 tokens/s per device · MFU 42% · 20 s left"
    )


def test_a_slow_link_is_reported():
    assert "MFU 42% · slow link: 40% is communication · 20 s left" in progress_line(
        STEP | {"exchange": 0.4}
    )
    assert progress_line(STEP | {"exchange": 0.3}) == progress_line(STEP)


def test_the_time_left_is_that_of_recent_steps():
    before = [{"step": 0, "eval_loss": 2.0}, STEP | {"step": 1, "seconds": 1190.0}]
    assert progress_line(STEP, before).endswith(" · 20 min left")
    assert progress_line(STEP | {"total_steps": 20}, before).endswith(" · 3 h 0 min left")


def test_an_evaluation_s_line():
    evaluation = {"step": 4, "total_steps": 4, "eval_loss": 1.25, "eval_end_of_turn": 0.756}
    assert progress_line(evaluation) == (
        "     train  step 4 of 4 · held-out loss 1.2500 · end of turn chosen 76% of the time"
    )


def test_repeated_steps_are_shown_again(tmp_path, capsys, monkeypatch):
    """An attempt resumes from its checkpoint, and removes the lines after it."""
    run = RunDir.open(str(tmp_path))

    def seen(text):
        output = ""
        for _ in range(100):
            output += capsys.readouterr().err
            if text in output:
                return output
            time.sleep(0.05)
        raise AssertionError(output)

    line = {k: v for k, v in STEP.items() if k != "total_steps"}
    with follow.follow_metrics(run):
        with Metrics(run, constants={"total_steps": 4}) as metrics:
            for step in (1, 2, 3):
                metrics.write(line | {"step": step})
        seen("step 3 of 4")
        with Metrics(run, resume_step=1, constants={"total_steps": 4}) as metrics:
            seen("workers were lost; resuming")
            metrics.write(line | {"step": 2})
        assert "step 3" not in seen("step 2 of 4")


def test_a_run_that_resumes_lost_no_workers_and_shows_all_its_steps(tmp_path, capsys):
    run = RunDir.open(str(tmp_path))
    line = {k: v for k, v in STEP.items() if k != "total_steps"}
    with Metrics(run, constants={"total_steps": 4}) as metrics:
        for step in (1, 2, 3):
            metrics.write(line | {"step": step})
    with follow.follow_metrics(run):
        time.sleep(0.1)  # until it has read the file as it was
        with Metrics(run, resume_step=1, constants={"total_steps": 4}) as metrics:
            for step in (2, 3, 4):
                metrics.write(line | {"step": step, "seconds": 20.0})
    shown = capsys.readouterr().err
    assert "workers were lost" not in shown
    assert [f"step {step} of 4" in shown for step in (1, 2, 3, 4)] == [False, True, True, True]
