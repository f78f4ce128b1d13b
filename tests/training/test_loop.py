import errno
import json
import logging
import os
import re
import resource
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import killable
import numpy as np
import pytest

from allmrec_jax.errors import STOPPED, StoppedError, UserError
from allmrec_jax.runs import Run
from allmrec_jax.training.loop import LoopSettings, train_loop
from allmrec_jax.training.metrics import MetricsLogger, read_lines


def train(run, step, batch_at, settings, state=None, resume=False, **kwargs):
    state = jnp.float32(0.0) if state is None else state
    with MetricsLogger(run.path, settings.total_steps, quiet=True) as log:
        return train_loop(run, state, step, batch_at, settings, resume=resume, log=log, **kwargs)


@pytest.fixture
def run(tmp_path) -> Run:
    return Run.open(tmp_path, "data", "toy", killable.Settings(), 0, "0" * 64, {})


def add(state, batch):
    return state + batch, {"loss": state}


def test_every_batch_is_used_once_in_order(run):
    seen = []
    main = threading.get_ident()

    def batch_at(index):
        assert threading.get_ident() != main
        return np.float32(2**index)

    def step(state, batch):
        seen.append(int(batch))
        return add(state, batch)

    last, best = train(run, step, batch_at, LoopSettings(7))
    assert seen == [1, 2, 4, 8, 16, 32, 64]
    assert float(last) == float(best) == 127 and run.steps() == [7]


def test_metrics_are_means_since_the_last_line(run):
    train(run, add, lambda index: np.float32(1), LoopSettings(5, log_every=2))
    # The loss of step n is n - 1.
    assert read_lines(run.path / "metrics.jsonl") == [
        {"step": 2, "loss": 0.5},
        {"step": 4, "loss": 2.5},
        {"step": 5, "loss": 4.0},
    ]


def test_metrics_are_fetched_after_the_next_step_is_dispatched(run):
    events = []

    class Metric:
        def __init__(self, number):
            self.number = number

        def __array__(self, dtype=None, copy=None):
            events.append(f"fetch {self.number}")
            return np.float32(0)

    def step(state, batch):
        events.append(f"step {int(batch)}")
        return state, {"loss": Metric(int(batch))}

    train(run, step, lambda index: index, LoopSettings(3))
    dispatched = [event for event in dict.fromkeys(events)]
    assert dispatched == ["step 0", "step 1", "fetch 0", "step 2", "fetch 1", "fetch 2"]


def test_the_best_step_is_chosen_and_patience_stops(run):
    scores = {2: 0.1, 4: 0.5, 6: 0.5, 8: 0.2, 10: 0.9}
    last, best = train(
        run,
        add,
        lambda index: np.float32(1),
        LoopSettings(10, evaluate_every=2, patience=2),
        evaluate=lambda state: {"hit": scores[int(state)]},
        monitor="hit",
    )
    assert float(last) == 8 and float(best) == 4
    assert run.best_step() == 4 and 4 in run.steps()
    assert [line["valid/hit"] for line in read_lines(run.path / "metrics.jsonl")] == [0.1, 0.5, 0.5, 0.2]
    # Resuming a run that patience ended takes no further step.
    resumed, best = train(
        run,
        add,
        lambda index: np.float32(1),
        LoopSettings(10, evaluate_every=2, patience=2),
        evaluate=lambda state: {"hit": scores[int(state)]},
        monitor="hit",
        resume=True,
    )
    assert float(resumed) == 8 and float(best) == 4


def test_less_can_be_better(run):
    _, best = train(
        run,
        add,
        lambda index: np.float32(1),
        LoopSettings(4, evaluate_every=1, maximize=False),
        evaluate=lambda state: {"loss": abs(float(state) - 3)},
        monitor="loss",
    )
    assert float(best) == 3


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(run):
    def step(state, batch):
        return state + 1, {"loss": jnp.where(state == 6, jnp.nan, 1.0)}

    with pytest.raises(UserError, match=r"loss is nan at step 7; the checkpoint of step 6 is kept"):
        train(run, step, lambda index: index, LoopSettings(10, save_every=2))
    assert run.steps() == [4, 6] and float(run.restore(jax.eval_shape(lambda: jnp.float32(0)))) == 6
    # Step 8 would have been saved: its predecessors' losses are looked at first.


def test_a_loss_that_is_not_finite_is_never_saved(run):
    def step(state, batch):
        return state + 1, {"loss": jnp.where(state == 3, jnp.inf, 1.0)}

    with pytest.raises(UserError, match="loss is inf at step 4; the checkpoint of step 2 is kept"):
        train(run, step, lambda index: index, LoopSettings(10, save_every=2))
    assert run.steps() == [2]


def test_an_error_while_preparing_a_batch_is_raised(run):
    def batch_at(index):
        if index == 3:
            raise UserError("items.npy: damaged")
        return np.float32(1)

    with pytest.raises(UserError, match=r"items\.npy: damaged"):
        train(run, add, batch_at, LoopSettings(10))


def test_a_full_disk_keeps_the_last_checkpoint(run, caplog):
    state = {"big": jnp.asarray(np.random.default_rng(0).random(1 << 15, np.float32)), "n": jnp.int32(0)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def batch_at(index):
        if index == 12:
            # From here on no file may grow beyond 64 KiB; the state needs twice that.
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
        return index

    def step(state, batch):
        return {"big": state["big"] * 1.0, "n": state["n"] + 1}, {"loss": jnp.float32(0)}

    try:
        with pytest.raises(UserError, match=r"cannot write .*steps/15: .*earlier outputs are intact"):
            train(run, step, batch_at, LoopSettings(20, save_every=5), state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    for file in ("orbax/checkpoint/late.py", "other.py"):  # one of Orbax's threads may be later than the error
        logging.getLogger("absl").handle(logging.LogRecord("absl", logging.ERROR, file, 1, "", (), None))
    assert [record.pathname for record in caplog.records] == ["other.py"], "Orbax's threads log tracebacks"
    assert run.steps() == [5, 10] and sorted(path.name for path in (run.path / "steps").iterdir()) == ["10", "5"]
    last, _ = train(run, step, lambda index: index, LoopSettings(20, save_every=5), state, resume=True)
    assert int(last["n"]) == 20
    np.testing.assert_array_equal(last["big"], state["big"])


def test_sigterm_saves_the_step_under_way_and_says_so(run):
    def step(state, batch):
        if batch == 3:
            signal.raise_signal(signal.SIGTERM)
        return add(state, np.float32(1))

    with pytest.raises(StoppedError, match=r"asked to end \(SIGTERM\) and saved at step 4; .*--resume"):
        train(run, step, lambda index: index, LoopSettings(10, save_every=5))
    assert run.steps() == [4] and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    last, _ = train(run, step, lambda index: 0, LoopSettings(10, save_every=5), resume=True)
    assert float(last) == 10


@pytest.mark.parametrize("text", ["[]\n", '{"loss": 1}\n', '{"step": 1}\n{\n', "[" * 100_000 + "\n", "\x00\n"])
def test_metrics_of_another_structure_are_one_line(tmp_path, text):
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(UserError, match=r"metrics\.jsonl, line [12]: "):
        read_lines(tmp_path / "metrics.jsonl")


def events(folder):
    """What TensorBoard's files of a run hold, by file: records of a length, its checksum, the bytes and theirs."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(folder.iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (size,) = struct.unpack_from("Q", content, at)
            yield Event.FromString(content[at + 12 : at + 12 + size])
            at += size + 16


def test_tensorboard_has_each_metric_and_hides_what_is_done_again(tmp_path):
    with MetricsLogger(tmp_path, 9, quiet=True) as log:
        log.start(4)
        log.write(5, {"loss": 0.5, "valid/hit@1": 0.25})
        log.write(6, {"loss": 0.125})
    found = list(events(tmp_path / "tensorboard"))
    assert [each.step for each in found if each.HasField("session_log")] == [5]
    points = [(each.step, value.tag, value.simple_value) for each in found for value in each.summary.value]
    # Its tags take no @.
    assert points == [(5, "loss", 0.5), (5, "valid/hit_1", 0.25), (6, "loss", 0.125)]


def test_a_full_disk_at_the_logs_is_one_line_and_hides_no_other_error(tmp_path, monkeypatch):
    def full(self):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tensorboardX.record_writer.RecordWriter.flush", full)
    line = re.escape(f"cannot write {tmp_path}: No space left on device")
    with pytest.raises(UserError, match=line), MetricsLogger(tmp_path, 9, quiet=True) as log:
        log.start(0)
    with pytest.raises(UserError, match=r"^the loss is nan$"), MetricsLogger(tmp_path, 9, quiet=True) as log:
        log.start(0)
        raise UserError("the loss is nan")


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"ste')
    assert read_lines(tmp_path / "metrics.jsonl") == [{"step": 1}]


def run_killable(root: Path, *arguments: str) -> int:
    """Runs the toy training in a process of its own and returns how it ended."""
    done = subprocess.run(
        [sys.executable, killable.__file__, str(root), *arguments], capture_output=True, text=True, timeout=240
    )
    assert done.returncode in (0, -signal.SIGKILL, STOPPED), done.stderr
    return done.returncode


def test_killed_anywhere_and_resumed_it_ends_bit_for_bit_where_the_unbroken_run_does(tmp_path):
    assert run_killable(tmp_path / "unbroken", "never") == 0
    for moment in ("batch 13", "term 16", "replace 21", "best 30", "batch 34", "term 36", "end"):
        resume = [] if moment == "batch 13" else ["--resume"]
        ended = STOPPED if moment.startswith("term") else -signal.SIGKILL
        assert run_killable(tmp_path / "broken", moment, *resume) == ended, moment
    assert run_killable(tmp_path / "broken", "never", "--resume") == 0

    unbroken, broken = (next((tmp_path / name).glob("toy/toy/*")) for name in ("unbroken", "broken"))
    assert (unbroken / "export" / "last.npy").read_bytes() == (broken / "export" / "last.npy").read_bytes()
    assert (unbroken / "export" / "best.npy").read_bytes() == (broken / "export" / "best.npy").read_bytes()
    for name in ("metrics.jsonl", "best", "DONE"):
        assert (unbroken / name).read_text() == (broken / name).read_text(), name
    steps = [json.loads(line)["step"] for line in (broken / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)) and steps[-1] == 40
    assert not [name for name in os.listdir(broken / "steps") if not name.isdigit()]
