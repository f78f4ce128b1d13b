"""The unit of a column of times, told by their size: no two units share a range between 1973 and 5138."""

from pathlib import Path

import polars as pl

from allmrec_jax.data.readers.reading import Reading

SECONDS, MILLISECONDS, MICROSECONDS, NANOSECONDS = "seconds", "milliseconds", "microseconds", "nanoseconds"

TICKS = {SECONDS: 1.0, MILLISECONDS: 1e3, MICROSECONDS: 1e6, NANOSECONDS: 1e9}
"""Ticks of each unit in a second."""

SMALLEST = 1e8
"""The seconds (1973) from which on a number is taken for a Unix time; the next unit begins a thousandfold higher."""


def units_of(times: pl.Series) -> dict[str, int]:
    """How many of the times are in the range of each unit; times before 1973 are in none."""
    sizes = times.drop_nulls()
    counts = {
        unit: int(((sizes >= SMALLEST * ticks) & (sizes < SMALLEST * ticks * 1e3)).sum())
        for unit, ticks in TICKS.items()
    }
    return {unit: count for unit, count in counts.items() if count}


def unit_of(times: pl.Series, path: Path, reading: Reading) -> str | None:
    """The unit of most of the times, None where they are no Unix times; mixed units and strays are warned of."""
    counts = units_of(times)
    if not counts:
        return None
    unit = max(counts, key=lambda name: counts[name])
    total = len(times.drop_nulls())
    if len(counts) > 1:
        found = ", ".join(f"{count:,} in {name}" for name, count in counts.items())
        reading.warn(path, f"times are of several units ({found}): their order is wrong; make them alike")
    if strays := total - sum(counts.values()):
        reading.warn(path, f"{strays:,} of {total:,} times lie before 1973 when read as {unit}")
    return unit


def in_seconds(times: pl.Series, expected: str, path: Path, reading: Reading) -> pl.Series:
    """Times in Unix seconds, taken in the unit that their size speaks for, which is warned of where not expected."""
    unit = unit_of(times, path, reading)
    if unit is None:
        reading.warn(path, f"all times lie before 1973 when read as {expected}")
    elif unit != expected:
        reading.warn(path, f"times are read as {unit}: as {expected}, which such files hold, they would be wrong")
    return times / TICKS[unit or expected]
