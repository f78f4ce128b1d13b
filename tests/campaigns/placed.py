"""What happens to a command beside a disk that refuses: no memory, a clock that goes back, a full standard output.

:func:`arm` prepares it in the process that will run the command; ``at`` is the moment, counted over all there are.
"""

import json
import os
import resource
import threading
import time
from pathlib import Path
from typing import Any

HOUR = 3600
ALLOCATES = ("empty", "zeros", "ones", "full", "concatenate", "stack", "asarray", "array", "ascontiguousarray")

moments = {"memory": 0, "clock": 0}
_lock = threading.Lock()


def arm(fault: dict[str, Any]) -> None:
    """Prepares a fault.

    Args:
        fault: its ``kind``. `memory`: the allocation of NumPy or fetch from a device numbered ``at`` finds none.
            `clock`: from the reading numbered ``at`` it is an hour behind. `address space`: the process may take no
            more than ``bytes`` beside what it has. `output`: standard output is full. `none`: nothing happens, and
            ``count`` names a file that is told how many moments there were.
    """
    kind = fault["kind"]
    if kind in ("memory", "none"):
        import jax
        import numpy as np

        for name in ALLOCATES:
            setattr(np, name, _short(getattr(np, name), fault, _no_memory))
        jax.device_get = _short(jax.device_get, fault, _no_device_memory)
    if kind in ("clock", "none"):
        time.time, time.time_ns = _back(time.time, fault, HOUR), _back(time.time_ns, fault, HOUR * 10**9)
    if kind == "none":
        import atexit

        atexit.register(lambda: Path(fault["count"]).write_text(json.dumps(moments)))
    if kind == "address space":
        import polars  # noqa: F401, which a shortage would leave half imported

        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + fault["bytes"],) * 2)
    if kind == "output":
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


def _comes(kind: str) -> int:
    """Counts a moment; its number."""
    with _lock:
        moments[kind] += 1
        return moments[kind] - 1


def _short(function: Any, fault: dict[str, Any], error: Any) -> Any:
    """``function``, at one of whose calls there is no memory."""

    def wrapped(*arguments: Any, **named: Any) -> Any:
        if _comes("memory") == fault.get("at"):
            raise error()
        return function(*arguments, **named)

    return wrapped


def _back(read: Any, fault: dict[str, Any], hour: int) -> Any:
    """A reading of the clock that goes back."""
    return lambda: read() - hour * (_comes("clock") >= fault.get("at", 1 << 62))


def _no_memory() -> MemoryError:
    """As NumPy says it."""
    return MemoryError("Unable to allocate 1.00 GiB for an array with shape (134217728,) and data type float64")


def _no_device_memory() -> Exception:
    """As XLA says it."""
    import jax

    return jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1073741824 bytes.")
