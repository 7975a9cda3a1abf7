"""A worker's loop without Ray Train, around an engine that computes nothing."""

import shutil
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest

from ochat_ray.errors import UserError
from ochat_ray.lock_claims import LOCK_FOLDER
from ochat_ray.run_dir import RunDir
from ochat_ray.run_lock import hold
from ochat_ray.train import checkpoint as checkpoints
from ochat_ray.train import loop
from ochat_ray.train.config import TrainConfig
from ochat_ray.train.engine import Evaluation, StepResult
from ochat_ray.train.failures import Place
from ochat_ray.train.metrics import Metrics
from ochat_ray.train.steps import Step, Steps
from tests.train.test_checkpoint import made


def evaluated(loss):
    return Evaluation(loss=loss, end_of_turn=0.5, weight=9.0)


class Worker(loop._Worker):
    """The only worker of a run: two epochs of three steps, with given held-out losses by step."""

    def __init__(self, run, losses=(), *, token="", resumed=None, **options):
        self.config = TrainConfig(
            output=run.root, epochs=2, sequences_per_step=2, max_tokens=64, checkpoint_every=2,
            **options,
        )  # fmt: skip
        self.settings = {
            "token": token, "identity": {}, "sample_prompts": None,
            "staging": run.path("staging"),
        }  # fmt: skip
        self.run, self.place, self.resumed, self.attempt = run, Place(), resumed, "a"
        self.rank, self.world_size, self.local_rank, self.node_rank = 0, 1, 0, 0
        self.steps = Steps(self.config, np.full(6, 10))
        self.mode, self.tokenizer = SimpleNamespace(packed=True), None
        self.engine = SimpleNamespace(
            next_ids=None, dtype="torch.float32", save=lambda path: (path / "a.pt").write_text("x")
        )
        self.losses, self.saved, self.exported = losses, [], None

    def _agree(self, value):
        return value

    def _gather(self, value):
        return [value]

    def _step(self, step):
        return {"step": step.number, "loss": 1.0}

    def _evaluate(self, step):
        return evaluated(self.losses[step])

    def _export(self, before, after, done):
        self.exported = before.loss, after.loss, done


class Counting(Worker):
    """A worker that records its checkpoints instead of writing them."""

    def _check_held(self):
        pass

    def _save(self, step, conversations, before, evaluation):
        self.saved.append((step.number, conversations, evaluation and evaluation.loss))


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(loop.ray.train, "report", lambda *_args, **_options: None)
    monkeypatch.setattr(loop.distributed, "barrier", lambda: None)
    return RunDir.open(str(tmp_path))


def test_a_checkpoint_has_the_conversations_trained_and_the_loss_of_its_own_step(run):
    losses = {0: 3.0, 3: 2.0, 6: 1.0}
    worker = Counting(run, losses)
    worker.train()
    assert worker.saved == [(2, 4, None), (3, 6, 2.0), (4, 8, None), (6, 12, 1.0)]
    assert worker.exported == (3.0, 1.0, 6)
    before = asdict(evaluated(3.5))
    worker = Counting(run, losses, resumed=made(4, conversations=8, eval_before=before))
    worker.train()
    assert worker.saved == [(6, 12, 1.0)]
    assert worker.exported == (3.5, 1.0, 6)


def test_a_resumed_run_stops_early_by_the_losses_before_its_checkpoint(run):
    with Metrics(run) as metrics:
        for step, loss in ((0, 3.0), (3, 3.1)):
            metrics.write({"step": step, "eval_loss": loss})
    resumed = made(3, conversations=6, eval_before=asdict(evaluated(3.0)))
    worker = Counting(run, {3: 3.1, 6: 1.0}, resumed=resumed, early_stopping=1)
    worker.train()
    assert worker.saved == []
    assert worker.exported == (3.0, 3.1, 3)


def test_every_weighted_token_of_a_step_counts_the_same_on_all_workers(run, monkeypatch):
    weights = {0: [1.0, 1.0, 0.5], 1: [0.0, 1.0], 2: [1.0, 1.0, 1.0, 1.0]}  # 1.5 + 1 + 3
    table = SimpleNamespace(
        id=str,
        lengths=np.array([3, 2, 4]),
        row=lambda index: (None, np.array(weights[index], np.float32)),
        batch=lambda pack: SimpleNamespace(to=lambda _device: pack),
    )
    monkeypatch.setattr(loop, "training_flops", lambda *_args, **_options: 1.0)
    monkeypatch.setattr(loop._Worker, "_communication_seconds", lambda *_args: 0.0)
    packs = [[[0, 1]], [[2]]]
    step = Step(number=1, epoch=0, packs=packs, rate=0.5, evaluates=False, saves=False)
    for rank in (0, 1):
        computed = {}

        def compute(own, scales, computed=computed, **options):
            computed.update(options, packs=list(own), scales=list(scales))
            return StepResult(loss=1.0, grad_norm=2.0)

        worker = Worker(run)
        worker.rank, worker.world_size, worker.table = rank, 2, table
        worker.shape, worker.peak_flops = None, 1.0
        worker.engine = SimpleNamespace(step=compute, device=None)
        line = loop._Worker._step(worker, step)
        assert computed == {"packs": packs[rank], "scales": [1 / 5.5], "rate": 0.5}
        assert (line["conversations"], line["tokens"], line["world_size"]) == (3, 9, 2)


def test_a_notice_of_preemption_brings_a_checkpoint_after_the_step(run, monkeypatch):
    class Notice:
        def __init__(self, _agree):
            self.found = iter([False, False, False, False, True, False])

        def arrived(self):
            return next(self.found)

    monkeypatch.setattr(loop, "PreemptionNotice", Notice)
    worker = Counting(run, {0: 3.0, 3: 2.0, 6: 1.0})
    worker.train()
    assert [step for step, *_ in worker.saved] == [2, 3, 4, 5, 6]


def test_a_worker_that_lost_the_lock_during_an_upload_completes_no_checkpoint(run, monkeypatch):
    with hold(run, "train") as lock:
        worker = Worker(run, token=lock.token)
        step = next(worker.steps.after(0, 1))
        monkeypatch.setattr(
            loop.ray.train,
            "report",
            lambda *_args, **_options: shutil.rmtree(run.path(LOCK_FOLDER)),
        )
        with pytest.raises(UserError, match="another run has taken over"):
            worker._save(step, 2, evaluated(3.0), None)
    name = checkpoints.directory_name(1, "a")
    assert not run.exists(f"{checkpoints.FOLDER}/{name}/state.json")


def test_data_that_was_prepared_again_during_the_run_is_rejected(run, data, monkeypatch):
    monkeypatch.setattr(
        loop.ray.train,
        "get_context",
        lambda: SimpleNamespace(
            **{f"get_{name}": lambda: 0 for name in ("world_rank", "local_rank", "node_rank")},
            get_world_size=lambda: 1,
        ),
    )
    settings = {
        "config": asdict(TrainConfig(data=data, output=run.root)),
        "identity": {"data_digest": "0" * 64},
    }
    with pytest.raises(UserError, match="was prepared again meanwhile; run training again"):
        loop._Worker(settings, run, Place())


def test_a_checkpoint_in_another_dtype_is_rejected(run):
    worker = Worker(run, resumed=made(4, dtype="torch.bfloat16"), dtype="float32")
    with pytest.raises(UserError, match="give --dtype bfloat16"):
        worker._engine(None)


def test_a_held_out_loss_that_is_not_finite_ends_the_run_before_its_checkpoint(run, monkeypatch):
    monkeypatch.setattr(loop, "end_of_turn_id", lambda _tokenizer: 300)

    class Diverging(Counting):
        def _evaluate(self, step):
            self.engine.evaluate = lambda *_args: evaluated(float("nan") if step else 3.0)
            return loop._Worker._evaluate(self, step)

        def _held_out_packs(self):
            return iter(())

    worker = Diverging(run)
    with pytest.raises(UserError, match="held-out loss after step 3 is nan"):
        worker.train()
    assert [step for step, *_ in worker.saved] == [2]


def test_a_model_whose_publication_is_interrupted_is_not_complete(run, monkeypatch):
    def interrupted(directory, _run):
        assert (directory / "config.json").exists()
        raise OSError("interrupted")

    def exported(_engine, _config, _tokenizer, directory, **_options):
        (directory / "config.json").write_text("{}")
        return {"export_difference": 0.0}

    class Exporting(Worker):
        def _result(self, before, after, done):
            return {"step": done}

    monkeypatch.setattr(loop, "export_checked", exported)
    monkeypatch.setattr(loop, "write_card", lambda *_args: None)
    monkeypatch.setattr(loop, "choose_conversation", lambda _table: 0)
    monkeypatch.setattr(loop, "publish", interrupted)
    with hold(run, "train") as lock:
        worker = Exporting(run, token=lock.token)
        worker.manifest, worker.base = {"model_type": "openchat"}, "base"
        worker.held_out = SimpleNamespace(batch=lambda _rows: None)
        with pytest.raises(OSError, match="interrupted"):
            loop._Worker._export(worker, evaluated(3.0), evaluated(1.0), 6)
    assert not run.exists("ochat.json")
