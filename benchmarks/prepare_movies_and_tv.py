"""Prepare a file of the size of Amazon's Movies and TV (8.7 million reviews) in 4 GiB and load the result in a second.

Generates gzipped reviews and metadata in the raw Amazon 2018 form, with as many reviews and items as the real files
have and heavy tails of items and users; runs ``allmrec prepare`` on them as a process of its own and takes that
process's peak resident memory from the kernel; loads the data set in others. Writes what it measured as JSON. CPU
seconds, the load average and the niceness stand beside the clock's seconds, which say little on a busy machine.

    python benchmarks/prepare_movies_and_tv.py                      # 2.5 GB of disk, minutes
    python benchmarks/prepare_movies_and_tv.py --reviews 200000     # a small one
    python benchmarks/prepare_movies_and_tv.py --folder DIR --load-only    # measure loading again

Exit code 1 where a limit does not hold.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np

from allmrec_jax.embedded.lexicon import FUNCTION, PLAIN, THEMES
from allmrec_jax.experiments.processes import Ended, run_process

REVIEWS, USERS, ITEMS = 8_765_568, 3_826_085, 182_032
"""The real files' counts."""

MEMORY_LIMIT_GIB = 4.0
LOAD_LIMIT_SECONDS = 1.0
BATCH = 50_000


@click.command()
@click.option("--reviews", default=REVIEWS, show_default=True, help="Users and items shrink with them.")
@click.option(
    "--folder", type=click.Path(path_type=Path), help="Keep the files there and reuse those of an earlier run."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path(__file__).parent / "results" / "prepare_movies_and_tv.json",
    show_default=True,
)
@click.option("--load-only", is_flag=True, help="Measure loading again; the rest of OUT stays as it is.")
@click.option("--seed", default=0, show_default=True)
def main(reviews: int, folder: Path | None, out: Path, load_only: bool, seed: int) -> None:
    """Generate, prepare, load, measure."""
    result = json.loads(out.read_text()) if load_only else {}
    with tempfile.TemporaryDirectory() as temporary:
        place = folder or Path(temporary)
        if not load_only:
            result |= measure_prepare(place, reviews, seed)
        result["load"] = measure_load(place / "data")
    result["machine"] = machine()
    result["holds"] = (
        result["prepare"]["peak_gib"] < MEMORY_LIMIT_GIB and result["load"]["seconds"] < LOAD_LIMIT_SECONDS
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")
    click.echo(json.dumps(result, indent=2))
    if not result["holds"]:
        sys.exit(1)


def measure_prepare(folder: Path, reviews: int, seed: int) -> dict[str, Any]:
    """Generate into ``folder`` what is not there and prepare it into ``folder/data``."""
    source, data = folder / "Movies_and_TV.json.gz", folder / "data"
    if not source.exists():
        generate(folder, reviews, seed)
    measured = run_measured([sys.executable, "-m", "allmrec_jax.cli", "prepare", str(source), "--out", str(data)])
    manifest = json.loads((data / "manifest.json").read_text())
    return {
        "reviews": manifest["counts"]["interactions_read"],
        "gzipped_bytes": source.stat().st_size,
        "data_set": {key: manifest[key] for key in ("users", "items", "interactions", "cold_users", "counts")},
        "prepare": {
            "seconds": round(measured.seconds, 1),
            "cpu_seconds": round(measured.cpu_seconds, 1),
            "peak_gib": round(measured.peak_mib / 2**10, 3),
            "limit_peak_gib": MEMORY_LIMIT_GIB,
        }
        | circumstances(),
    }


def measure_load(data: Path) -> dict[str, Any]:
    """Medians of five loads, each in a process of its own; libraries are imported before the clock starts."""
    code = (
        "import sys, time; from allmrec_jax.data.dataset import load_dataset;"
        "start, cpu = time.perf_counter(), time.process_time(); load_dataset(sys.argv[1]);"
        "print(time.perf_counter() - start, time.process_time() - cpu)"
    )
    loads = [subprocess.check_output([sys.executable, "-c", code, str(data)]).split() for _ in range(5)]
    seconds, cpu_seconds = (round(statistics.median(map(float, values)), 3) for values in zip(*loads, strict=True))
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "limit_seconds": LOAD_LIMIT_SECONDS} | circumstances()


def circumstances() -> dict[str, float]:
    """How busy the machine is and how far this process stands back."""
    return {"load_average": round(os.getloadavg()[0], 1), "niceness": os.nice(0)}


def machine() -> dict[str, Any]:
    """What it ran on."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in ("polars", "numpy")},
    }


def run_measured(command: list[str]) -> Ended:
    """Runs a command, whose lines are printed; what it took."""
    ended = run_process(command, read="stdout", show=lambda line: print(line, end=""))
    if ended.exit_code:
        raise click.ClickException(f"{' '.join(command)} exited with {ended.exit_code}")
    return ended


def generate(folder: Path, reviews: int, seed: int) -> None:
    """Write both files, the reviews last."""
    rng = np.random.default_rng(seed)
    share = reviews / REVIEWS
    users, items = max(int(USERS * share), 20), max(int(ITEMS * share), 20)
    write_gzip(folder / "meta_Movies_and_TV.json.gz", metadata_lines(rng, items))
    write_gzip(folder / "Movies_and_TV.json.gz", review_lines(rng, reviews, users, items))


def review_lines(rng: np.random.Generator, reviews: int, users: int, items: int) -> Iterator[bytes]:
    """Batches of reviews in the raw form: heavy tails of users and items, days as times, texts as long as real ones."""
    texts = [json.dumps(sentence(rng, int(rng.lognormal(3.7, 1.1)) + 3)) for _ in range(4096)]
    user_weights = np.cumsum(rng.pareto(1.2, users) + 0.4)
    item_weights = np.cumsum((np.arange(items) + 20.0) ** -0.9)
    for start in range(0, reviews, BATCH):
        size = min(BATCH, reviews - start)
        user = np.searchsorted(user_weights, rng.random(size) * user_weights[-1])
        item = np.searchsorted(item_weights, rng.random(size) * item_weights[-1])
        rating = rng.choice([1, 2, 3, 4, 5], size, p=[0.06, 0.05, 0.09, 0.2, 0.6])
        day = rng.integers(12_000, 17_800, size)
        text = rng.integers(0, len(texts), size)
        rows = zip(user.tolist(), item.tolist(), rating.tolist(), day.tolist(), text.tolist(), strict=True)
        yield "".join(
            f'{{"overall": {r}.0, "verified": true, "reviewTime": "03 11, 2013", "reviewerID": "A{u:013d}", '
            f'"asin": "{i:010d}", "style": {{"Format:": " DVD"}}, "reviewerName": "user {u}", '
            f'"reviewText": {texts[t]}, '
            f'"summary": "{FUNCTION[t % len(FUNCTION)]}", "unixReviewTime": {d * 86400}}}\n'
            for u, i, r, d, t in rows
        ).encode()


def metadata_lines(rng: np.random.Generator, items: int) -> Iterator[bytes]:
    """Batches of item metadata; one in ten items has an empty list for a description."""
    for start in range(0, items, BATCH):
        lines = []
        for item in range(start, min(start + BATCH, items)):
            body = {
                "category": ["Movies & TV", "Movies"],
                "description": [] if item % 10 == 0 else [sentence(rng, 80)],
                "title": sentence(rng, 4).title(),
                "also_buy": [f"{other:010d}" for other in rng.integers(0, items, 20)],
                "brand": "",
                "asin": f"{item:010d}",
            }
            lines.append(json.dumps(body) + "\n")
        yield "".join(lines).encode()


WORDS = np.array([word for words in THEMES.values() for word in words] + [*PLAIN, *FUNCTION, *FUNCTION, *FUNCTION])


def sentence(rng: np.random.Generator, length: int) -> str:
    """Words of the lexicon."""
    return " ".join(WORDS[rng.integers(0, len(WORDS), length)])


def write_gzip(path: Path, batches: Iterator[bytes]) -> None:
    """Compress (quickly, not well) into ``path``, which appears when it is whole."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        for batch in batches:
            file.write(packer.compress(batch))
        file.write(packer.flush())
    partial.rename(path)


def cpu_name() -> str:
    """The model name that Linux gives, else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
