"""The notebook runs from its first cell to its last, with budgets of a few steps, on MovieLens where it is at hand."""

import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "docs" / "notebooks" / "movielens.ipynb"


@pytest.fixture
def movielens(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """MovieLens latest-small, or a folder of its form."""
    try:
        return request.getfixturevalue("shared_data") / "ml-latest-small"
    except pytest.skip.Exception:
        pass
    random, place = np.random.default_rng(0), tmp_path / "ml-tiny"
    place.mkdir()
    ratings = ["userId,movieId,rating,timestamp"]
    for user in range(1, 41):
        for step, movie in enumerate(random.permutation(40)[:10]):
            ratings.append(f"{user},{movie + 1},{random.integers(1, 6)}.0,{964982000 + 1000 * step}")
    movies = [f'{movie},"Quiet Orbit {movie} ({1950 + movie})",Drama|Sci-Fi' for movie in range(1, 41)]
    (place / "ratings.csv").write_text("\n".join(ratings) + "\n")
    (place / "movies.csv").write_text("\n".join(["movieId,title,genres", *movies]) + "\n")
    return place


def test_it_runs(movielens: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (place,) = (k for k, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
    stage2 = {"steps": 2, "warm_start_steps": 2, "batch_size": 4, "title_max_tokens": 6, "history_length": 2}
    budget = {"cf": {"epochs": 1}, "stage1": {"epochs": 1, "text_max_tokens": 8}, "stage2": stage2}
    cut = f"source, work = Path({str(movielens)!r}), Path({str(tmp_path / 'work')!r})\nbudget, users = {budget!r}, 8"
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(cut))
    kernel = AsyncKernelManager(kernel_name="python3")
    assert kernel.kernel_spec is not None
    kernel.kernel_spec.argv[0] = sys.executable
    NotebookClient(notebook, km=kernel, timeout=280, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [
        output["data"].get("text/html", "")
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "execute_result"
    ]
    printed = str([cell.get("outputs") for cell in notebook.cells])
    assert "rich/live.py" not in printed, "Rich warns where it cannot draw a bar"
    assert sum("<table" in each for each in shown) >= 4, "recommendations, a frame, the comparison and the runs"
    assert any(all(name in each for name in ("SASRec", "A-LLMRec", "LLM-Only")) for each in shown)
    assert (tmp_path / "work" / "results" / "users.parquet").is_file()


def test_its_committed_outputs_are_whole_and_name_no_place_of_this_machine() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert all(output.output_type != "error" for cell in code for output in cell.outputs)
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert [place for place in ("/home/", "/root/", "/tmp/", "/work/") if place in text] == []
