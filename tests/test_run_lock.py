"""Lock of an output directory: at most one of several runs holds it."""

import errno
import json
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
from pyarrow import fs as pafs

from ochat_ray import lock_claims, run_lock
from ochat_ray.errors import UserError
from ochat_ray.lock_claims import LOCK_FOLDER, Owner, Timing
from ochat_ray.run_dir import RunDir
from ochat_ray.run_lock import check_held, hold

QUICK = Timing(beat_s=0.02, stale_s=0.6, settle_s=0.2)


@pytest.fixture(params=["disk", "store"])
def run(request, tmp_path):
    """An output directory on a disk, or on a file system that cannot create exclusively."""
    if request.param == "disk":
        return RunDir.open(str(tmp_path))
    return RunDir(pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem()), "out")


def wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_second_run_is_refused_with_owner_and_advice_in_one_line(run):
    with hold(run, "prepare", QUICK):
        with pytest.raises(UserError) as refusal, hold(run, "train", QUICK):
            pass
        line = str(refusal.value)
    assert f"in use by prepare on {os.uname().nodename} (pid {os.getpid()}, started 20" in line
    assert "heartbeat 0 s ago" in line
    assert "choose another --output" in line
    assert "\n" not in line


def test_a_rejected_run_does_not_affect_the_owner(run):
    with hold(run, "prepare", QUICK) as lock:
        with pytest.raises(UserError), hold(run, "prepare", QUICK):
            pass
        lock.check()


def test_a_released_lock_is_free_immediately(run):
    for _ in range(3):
        with hold(run, "prepare", Timing(settle_s=0.1)) as lock:
            lock.check()


def test_a_run_that_fails_releases_its_lock(run):
    with pytest.raises(ZeroDivisionError), hold(run, "prepare", QUICK):
        raise ZeroDivisionError
    with hold(run, "prepare", QUICK):
        pass


def test_heartbeats_keep_a_held_lock_live(run, monkeypatch):
    monkeypatch.setattr(Owner, "is_alive", lambda owner: None)  # as of another host
    with hold(run, "prepare", QUICK) as lock:
        time.sleep(2 * QUICK.stale_s)
        with pytest.raises(UserError, match="if that process has died, wait 1 s"):
            hold(run, "prepare", QUICK).__enter__()
        lock.check()


def test_an_owner_on_another_host_is_dead_when_its_heartbeat_is_old(run, monkeypatch):
    monkeypatch.setattr(Owner, "is_alive", lambda owner: None)
    silent = replace(QUICK, beat_s=1000.0)
    with ExitStack() as stack:
        old = stack.enter_context(hold(run, "prepare", silent))
        with pytest.raises(UserError, match="in use by prepare"):
            hold(run, "prepare", silent).__enter__()
        time.sleep(silent.stale_s + 0.1)
        new = stack.enter_context(hold(run, "prepare", silent))
        new.check()
        with pytest.raises(UserError, match="another run has taken over"):
            old.check()
        assert old.is_lost
        new.check()


def test_the_heartbeat_of_a_run_notices_that_it_lost_its_lock(run, monkeypatch):
    with hold(run, "prepare", QUICK) as old:
        monkeypatch.setattr(lock_claims, "is_live", lambda *_: False)
        with hold(run, "prepare", QUICK) as new:
            wait_until(lambda: old.is_lost)
            new.check()
    with hold(run, "prepare", QUICK):  # neither end has taken the other's lock away
        pass


def test_an_error_of_a_run_that_lost_its_lock_is_the_lost_lock(run):
    def fail():
        with hold(run, "prepare", QUICK):
            run.remove(LOCK_FOLDER)
            raise FileNotFoundError("a part")

    with pytest.raises(UserError, match="another run has taken over"):
        fail()


def test_a_lock_whose_folder_is_deleted_is_lost(run):
    with hold(run, "prepare", QUICK) as lock:
        run.remove(LOCK_FOLDER)
        with pytest.raises(UserError, match=r"\.run/lock was deleted"):
            lock.check()


def _hold_for_ever(root, held):
    with hold(RunDir.open(root), "prepare"):
        held.set()
        time.sleep(1000)


def test_kill_9_of_the_owner_frees_the_lock_at_once_on_the_same_host(tmp_path):
    context = multiprocessing.get_context("fork")
    held = context.Event()
    process = context.Process(target=_hold_for_ever, args=(str(tmp_path), held))
    process.start()
    assert held.wait(30)
    run = RunDir.open(str(tmp_path))
    with pytest.raises(UserError, match=rf"pid {process.pid}, "):
        hold(run, "prepare").__enter__()
    os.kill(process.pid, signal.SIGSTOP)  # a stopped process may continue later
    with pytest.raises(UserError, match=rf"pid {process.pid}, "):
        hold(run, "prepare", Timing(stale_s=0.0)).__enter__()
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # as a parent that does not ask
    with hold(run, "prepare"):
        pass
    process.join(30)


def test_a_process_of_the_same_number_is_not_the_same_process():
    owner = Owner.current("prepare")
    assert owner.is_alive() is True
    assert replace(owner, process_started=owner.process_started - 60).is_alive() is False
    assert replace(owner, pid=2**22 + 1).is_alive() is False  # Linux has none above 2**22
    assert replace(owner, machine="elsewhere").is_alive() is None


def test_another_users_process_that_is_hidden_is_judged_by_its_heartbeat(monkeypatch):
    def refuse(pid, signal):
        raise PermissionError

    owner = replace(Owner.current("prepare"), pid=2**22 + 1)
    monkeypatch.setattr(os, "kill", refuse)
    assert owner.is_alive() is None


def test_at_most_one_of_many_simultaneous_runs_gets_the_lock(run):
    for _ in range(3):
        start, others_done, holders = threading.Barrier(6), threading.Barrier(6), []

        def contend(start=start, others_done=others_done, holders=holders):
            start.wait()
            try:
                with hold(run, "prepare", QUICK) as lock:
                    lock.check()
                    holders.append(lock)
                    others_done.wait()
            except UserError:
                others_done.wait()

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda _: contend(), range(6)))
        assert len(holders) == 1


def test_at_most_one_of_many_takes_over_from_a_dead_owner(run, monkeypatch):
    dead = replace(Owner.current("prepare"), process_started=0.0)
    with monkeypatch.context() as patch:
        patch.setattr(Owner, "current", lambda stage: dead)
        patch.setattr(run_lock.RunLock, "_end", lambda lock: lock._stop.set())
        hold(run, "prepare", QUICK).__enter__()
    test_at_most_one_of_many_simultaneous_runs_gets_the_lock(run)


def test_a_slow_contender_yields_to_a_higher_claim(tmp_path, monkeypatch):
    run = RunDir.open(str(tmp_path))
    with hold(run, "prepare"):
        pass
    with hold(run, "prepare") as lock:  # claim 2; 1 has been removed
        numbers = lock_claims.DiskClaims._numbers
        stale = iter([[]])  # what the slow one listed before all this
        monkeypatch.setattr(
            lock_claims.DiskClaims, "_numbers", lambda claims: next(stale, None) or numbers(claims)
        )
        with pytest.raises(UserError, match="in use by prepare"):
            hold(run, "prepare").__enter__()
        lock.check()


def test_a_disk_without_hard_links_has_the_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError()))
    run = RunDir.open(str(tmp_path))
    with hold(run, "prepare"), pytest.raises(UserError, match="in use by prepare"):
        hold(run, "prepare").__enter__()
    with hold(run, "prepare") as lock:
        lock.check()
    test_at_most_one_of_many_simultaneous_runs_gets_the_lock(run)


def test_a_network_disk_that_reports_our_own_claim_as_anothers_is_believed_by_content(
    tmp_path, monkeypatch
):
    def link(source, target, link=os.link):
        link(source, target)
        raise FileExistsError

    monkeypatch.setattr(os, "link", link)
    with hold(RunDir.open(str(tmp_path)), "prepare") as lock:
        lock.check()


@pytest.fixture
def full_disk(monkeypatch):
    """New files get no byte; those that are there can be written over."""

    def write_bytes(path, data):
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    return lambda: monkeypatch.setattr(Path, "write_bytes", write_bytes)


def test_a_full_disk_leaves_no_claim(tmp_path, full_disk):
    full_disk()
    run = RunDir.open(str(tmp_path))
    with pytest.raises(OSError, match="No space"), hold(run, "prepare", QUICK):
        pass
    assert os.listdir(tmp_path / LOCK_FOLDER) == []


def test_a_lock_is_released_on_a_disk_that_has_filled_up(tmp_path, full_disk, monkeypatch):
    run = RunDir.open(str(tmp_path))
    with hold(run, "prepare", QUICK):
        full_disk()
    monkeypatch.undo()
    assert os.listdir(tmp_path / LOCK_FOLDER) == ["00000001.json"]
    with hold(run, "prepare", QUICK):
        pass


def test_a_place_without_new_folders_is_one_line():
    run = RunDir.open("/proc/out")
    match = "/proc/out cannot be an output directory"
    with pytest.raises(UserError, match=match), hold(run, "prepare", QUICK):
        pass


@pytest.mark.parametrize("place", ["out", "out/.run", "out/.run/lock"])
def test_a_file_in_place_of_a_folder_is_one_line(tmp_path, place):
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_text("mine")
    run = RunDir.open(str(tmp_path / "out"))
    with pytest.raises(UserError, match="is in the way"), hold(run, "prepare", QUICK):
        pass
    assert (tmp_path / place).read_text() == "mine"


@pytest.mark.parametrize("field", [f.name for f in fields(Owner)])
def test_a_claim_with_a_value_of_another_type_is_no_traceback(tmp_path, field):
    claim = tmp_path / LOCK_FOLDER / "00000001.json"
    claim.parent.mkdir(parents=True)
    claim.write_text(json.dumps(asdict(Owner.current("prepare")) | {field: None}))
    with pytest.raises(UserError), hold(RunDir.open(str(tmp_path)), "prepare", QUICK):
        pass


def test_a_heartbeat_from_before_the_clock_was_set_back_grows_old(run, monkeypatch):
    monkeypatch.setattr(Owner, "is_alive", lambda owner: None)
    assert not lock_claims.is_live(Owner.current("prepare"), -3600.0, QUICK)
    assert lock_claims.is_live(Owner.current("prepare"), -0.1, QUICK)


def test_a_claim_without_its_text_yet_is_respected(tmp_path):
    run = RunDir.open(str(tmp_path))
    claim = tmp_path / LOCK_FOLDER / "00000001.json"
    claim.parent.mkdir(parents=True)
    claim.touch()
    with pytest.raises(UserError, match="another run is starting"):
        hold(run, "prepare").__enter__()
    os.utime(claim, (time.time() - 100, time.time() - 100))
    with hold(run, "prepare"):
        assert json.loads((claim.parent / "00000002.json").read_text())["pid"] == os.getpid()


def test_a_store_that_writes_too_slowly_for_the_protocol_is_rejected(tmp_path, monkeypatch):
    run = RunDir(pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem()), "out")
    write = lock_claims.StoreClaims._write
    monkeypatch.setattr(
        lock_claims.StoreClaims, "_write", lambda *a: (time.sleep(0.11), write(*a))[1]
    )
    with pytest.raises(UserError, match=r"longer than 0\.1 s"):
        hold(run, "prepare", QUICK).__enter__()
    assert not list((tmp_path / "out" / LOCK_FOLDER).iterdir())


def test_the_lock_on_s3(s3):
    run = RunDir.open("s3://bucket/out")
    timing = Timing(settle_s=2.5)
    with hold(run, "prepare", timing) as lock:
        with pytest.raises(UserError, match="in use by prepare"):
            hold(run, "prepare", timing).__enter__()
        lock.check()
        assert lock._claims.renew()
        run.remove(LOCK_FOLDER)
        with pytest.raises(UserError, match="taken over"):
            lock.check()


def test_another_process_of_a_run_finds_out_that_its_lock_is_gone(run):
    """Like a worker that outlives its driver, which checks the run's claim before every write."""
    with hold(run, "train", QUICK) as lock:
        check_held(run, lock.token)
        with pytest.raises(UserError, match="another run has taken over"):
            check_held(run, "0" * 32)
    with pytest.raises(UserError, match="another run has taken over"):
        check_held(run, lock.token)
    with hold(run, "train", QUICK) as other:
        check_held(run, other.token)
        with pytest.raises(UserError, match="another run has taken over"):
            check_held(run, lock.token)
    with pytest.raises(UserError, match="another run has taken over"):
        check_held(RunDir(run.fs, run.path("empty")), lock.token)


def test_a_worker_whose_driver_was_killed_may_continue_until_another_run_starts(run):
    context = multiprocessing.get_context("fork")
    found = context.Queue()

    def driver():
        with hold(run, "train", QUICK) as lock:
            found.put(lock.token)
            time.sleep(60)

    process = context.Process(target=driver)
    process.start()
    token = found.get()
    process.kill()
    process.join()
    check_held(run, token)
    with hold(run, "train", QUICK), pytest.raises(UserError, match="taken over"):
        check_held(run, token)


@pytest.mark.parametrize("name", ["00000001.sync-conflict.json", "notes.json", "99999999.json"])
def test_other_files_among_the_claims_and_high_numbers_do_no_harm(tmp_path, name):
    run = RunDir.open(str(tmp_path))
    (tmp_path / LOCK_FOLDER).mkdir(parents=True)
    (tmp_path / LOCK_FOLDER / name).write_bytes(lock_claims._RELEASED)
    for _ in range(2):
        with hold(run, "train", QUICK) as lock:
            check_held(run, lock.token)
            with pytest.raises(UserError, match="in use"), hold(run, "train", QUICK):
                pass
