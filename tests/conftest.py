"""Settings and fixtures shared by all tests.

JAX runs with eight CPU devices, refuses implicit dtype promotion and implicit rank promotion: what passes here mixes
no float64 or int32 into float32 by accident and broadcasts only where it says so.

Compiled programs are kept in ``.pytest_cache/compiled``, for many tests, and the processes that they start, compile the
same ones; and they are compiled almost unoptimized, for most run for less time than optimizing them would take.
"""

import os
from pathlib import Path

import jax
import pytest

worker = os.environ.get("PYTEST_XDIST_WORKER")
if worker and hasattr(os, "sched_setaffinity"):
    # Each worker has a core of its own: on shared ones threads that wait for each other cost more than they compute.
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

COMPILED = str(Path(__file__).resolve().parents[1] / ".pytest_cache" / "compiled")
SETTINGS = {
    "jax_compilation_cache_dir": COMPILED,
    "jax_persistent_cache_min_compile_time_secs": 0.3,
    "jax_disable_most_optimizations": True,
}
for name, value in SETTINGS.items():
    os.environ.setdefault(name.upper(), str(value))  # of the processes that tests start
    jax.config.update(name, value)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The directory of real data sets: ``ALLMREC_SHARED_DATA``, or ``../shared/data`` beside the checkout."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("ALLMREC_SHARED_DATA", default))
    if not path.is_dir():
        pytest.skip(f"no real data sets at {path}; set ALLMREC_SHARED_DATA to test with them")
    return path
