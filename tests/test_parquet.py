"""Parquet files that are damaged: one line, and nothing else on the terminal."""

import os

import polars as pl
import pytest

from allmrec_jax.errors import UserError
from allmrec_jax.parquet import one_line, read_frame


def test_a_parquet_file_that_is_none_or_lacks_a_column(tmp_path):
    for content, columns in ((b"PAR1 cut", None), (None, ["absent"])):
        path = tmp_path / "a.parquet"
        pl.DataFrame({"x": [1]}).write_parquet(path) if content is None else path.write_bytes(content)
        with pytest.raises(UserError, match=r"a\.parquet: cannot be read as Parquet \(.*\); make it again") as caught:
            read_frame(path, "make it again", columns)
        assert "\n" not in str(caught.value)
    assert read_frame(path, "make it again", ["x"])["x"].to_list() == [1]


def test_a_panic_of_polars_is_one_line_and_is_not_heard(capfd):
    with (
        pytest.raises(UserError, match=r"a\.parquet: cannot be read as Parquet \(assertion failed\)$"),
        one_line("a.parquet"),
    ):
        os.write(2, b"thread panicked\nstack backtrace:\n")
        raise pl.exceptions.PanicException("assertion failed")
    with one_line("a.parquet"):
        os.write(2, b"a warning\n")
    assert capfd.readouterr().err == "a warning\n"
