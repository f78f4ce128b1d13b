"""The devices that a call uses."""

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def devices(
    mesh: str | None = None, distributed: str | None = None, llm: Callable[[], str | None] = lambda: None
) -> Iterator[None]:
    """Works on a mesh of devices inside the block; on one device, or on the mesh in use, where none is named.

    Args:
        mesh: axes and sizes as ``"data=2,tensor=4"``, or ``"auto"`` for all devices there are.
        distributed: joins the processes started alike on several hosts: ``"auto"``, or ``"HOST:PORT,INDEX/COUNT"``.
        llm: the language model that ``"auto"`` must make room for.

    Raises:
        UserError: the mesh is none, or does not fit the devices or the model.
    """
    if mesh is None and distributed is None:
        yield
        return
    from allmrec_jax.planning.preflight import choose_mesh
    from allmrec_jax.sharding import several_processes, use_mesh

    with several_processes(distributed), use_mesh(choose_mesh(llm()) if mesh in (None, "auto") else mesh):
        yield
