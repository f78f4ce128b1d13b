"""Trains what an experiment lacks, each training a process of its own.

Killed at any point, the same experiment goes on from there: finished trainings are found, interrupted ones continued.
"""

import graphlib
import json
import logging
import shutil
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from allmrec_jax.errors import STOPPED, StoppedError, UserError
from allmrec_jax.experiments.graph import Row, Training, Workplace, trainings_of, units
from allmrec_jax.experiments.processes import allmrec_command, ending_together, run_process
from allmrec_jax.fileio import file_lock, recover_all, write_text
from allmrec_jax.records import COST
from allmrec_jax.runs import START_OVER

log = logging.getLogger(__name__)


@ending_together()
def run_missing(work: Workplace, rows: Sequence[Row], jobs: int = 1) -> None:
    """Trains what is not finished, each in a process of its own, as soon as all that it builds on is there.

    Args:
        jobs: trainings at a time.

    Raises:
        UserError: a training failed (it has said why itself), or another process is at the same one.
        StoppedError: SIGTERM came; the trainings under way were told so and have saved.
    """
    for node in trainings_of(rows):
        recover_all(work.path(node))
    missing = [node for node in trainings_of(rows) if not work.done(node)]
    numbers = {node: f"[{number}/{len(missing)}]" for number, node in enumerate(missing, start=1)}

    def train(node: Training) -> None:
        path = work.path(node)
        with file_lock(path.parent / f".{path.name}.lock") as lock:
            if work.done(node):  # by another experiment, since the plan was made
                return
            log.info(f"{numbers[node]} {node.name}")
            if work.damaged(node):
                log.info(f"    {path} is half written; it is trained again")
                shutil.rmtree(path)
            begun = (path / "steps").is_dir()
            try:
                cost: dict[str, Any] = dict(train_in_process(work.command(node), node.name, lock))
            except UserError as error:
                if not begun or START_OVER not in str(error):
                    raise
                log.info(f"    {path} cannot be continued; it is trained again")
                shutil.rmtree(path)
                begun, cost = False, dict(train_in_process(work.command(node), node.name, lock))
            if not work.done(node):
                raise UserError(f"{node.name} ended without {path}; its identity is not what was planned: report this")
            if not begun:  # the time of a run that was interrupted is not that of the whole
                cost |= {"units": units(work, node), "model": getattr(node.settings, "model", None)}
            write_text(path / COST, json.dumps(cost) + "\n")

    order = graphlib.TopologicalSorter({node: set(node.upstream) & set(missing) for node in missing})
    order.prepare()
    ready: list[Training] = []
    running: dict[Future[None], Training] = {}
    with ThreadPoolExecutor(jobs) as pool:  # its end waits for what still runs after a failure
        while order.is_active():
            ready += order.get_ready()
            while ready and len(running) < jobs:
                node = ready.pop(0)
                running[pool.submit(train, node)] = node
            for finished in wait(running, return_when=FIRST_COMPLETED).done:
                finished.result()
                order.done(running.pop(finished))


def train_in_process(arguments: Sequence[str], name: str, lock: int) -> dict[str, float]:
    """Runs ``allmrec ARGUMENTS`` as a process of its own; returns its seconds and its peak memory in MiB.

    Args:
        arguments: the command and its options.
        name: what it is called in messages.
        lock: an open lock file that it holds too: it may outlive this process.

    Raises:
        UserError: it failed.
    """
    log.info(f"    allmrec {' '.join(arguments)}")
    ended = run_process(allmrec_command(arguments), read="stderr", lock=lock)
    if ended.exit_code == STOPPED:
        raise StoppedError(f"training {name} was told to end and has saved; the same command goes on")
    if ended.exit_code:
        raise UserError(
            f"training {name} failed (exit code {ended.exit_code}): {ended.last_line}; the same command goes on"
        )
    cost = {"seconds": round(ended.seconds, 1), "peak_mib": round(ended.peak_mib)}
    log.info(f"    {cost['seconds']:,.0f} s, peak {cost['peak_mib']:,} MiB")
    return cost
