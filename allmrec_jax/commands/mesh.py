"""The options --mesh and --distributed, the same on every command that trains or evaluates."""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click


def mesh_options(llm: Callable[[dict[str, Any]], str | None] | None = None) -> Callable[[Callable], Callable]:
    """A click decorator: both options, and the command's body on the mesh that they name.

    Args:
        llm: from the command's arguments to the language model that ``--mesh auto`` must make room for.
    """

    def decorate(command: Callable) -> Callable:
        @functools.wraps(command)
        def wrapped(*, mesh: str | None, distributed: str | None, **given: Any) -> Any:
            if mesh is None and distributed is None:
                return command(**given)
            from allmrec_jax.planning.preflight import choose_mesh
            from allmrec_jax.sharding import several_processes, use_mesh

            with several_processes(distributed):
                shape = choose_mesh(llm(given) if llm else None) if mesh in (None, "auto") else mesh
                with use_mesh(shape):
                    return command(**given)

        wrapped = click.option(
            "--distributed",
            metavar="HOW",
            help="Join the processes started alike on several hosts: auto (SLURM, Open MPI, Kubernetes, TPU pods), or "
            "HOST:PORT,INDEX/COUNT.",
        )(wrapped)
        return click.option(
            "--mesh",
            metavar="AXES",
            help="Devices to use, e.g. data=2,tensor=4 (axes data, fsdp, tensor), or auto.  [one device]",
        )(wrapped)

    return decorate


def llm_of_runs(runs: Sequence[Path]) -> str | None:
    """The language model that the first of these runs with one was trained with."""
    for card in (Path(run) / "export" / "stage2.json" for run in runs):
        if card.is_file():
            return json.loads(card.read_text(encoding="utf-8")).get("llm")
    return None
