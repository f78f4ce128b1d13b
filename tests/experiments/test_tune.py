"""Settings chosen on validation users."""

import json

from click.testing import CliRunner

from allmrec_jax import cli
from allmrec_jax.experiments import tune
from allmrec_jax.runs import Run, load_run

pytest_plugins = "tiny_fixtures"


def test_tuning_chooses_on_validation_and_prints_the_best(place, in_this_process, monkeypatch):
    values = {"0.2": 0.3, "0.5": 0.6, "0.9": 0.1}

    def measured(run_missing):
        def wrapped(work, rows, jobs):
            run_missing(work, rows, jobs)
            for row in rows:  # as a validation would have left it
                alpha = str(row.trainings[1].settings.alpha)
                Run(work.path(row.trainings[-1]), "stage2", "", 0).mark_best(1, {"hit@1": values[alpha]})

        return wrapped

    monkeypatch.setattr(tune, "run_missing", measured(tune.run_missing))
    words = ["experiment", "tune", "--data", place / "data", "--checkpoints", place / "tuned", "--llm", place / "llm"]
    words += ["--grid", "stage1.alpha=0.2,0.5,0.9", "--set", "stage2.steps=2", "--out", place / "tune"]
    told = CliRunner().invoke(cli.allmrec, list(map(str, words)), catch_exceptions=False)
    kinds = [name.split(" ")[0] for name in in_this_process.trained]
    assert kinds == ["cf", *["stage1"] * 3, *["stage2"] * 3]
    lines = [line for line in told.stdout.splitlines() if not line.startswith(str(place))]  # the trainings' own
    assert lines[0] == "0.6000  stage1.alpha=0.5" and lines[-1] == "--set stage1.alpha=0.5"
    points = json.loads((place / "tune" / "tune.json").read_text())["points"]
    assert [point["hit@1"] for point in points] == [0.6, 0.3, 0.1]
    for point in points:
        assert load_run(place / "tuned" / "Tiny" / "stage2" / point["run"])["settings"]["choose"] == "best"
