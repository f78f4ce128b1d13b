"""The records of what can be trained."""

import inspect
import subprocess
import sys

import pytest

from allmrec_jax.errors import UserError
from allmrec_jax.registry import named
from allmrec_jax.trained.kinds import KINDS, preset_models


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_what_a_record_names_is_there_and_is_called_as_it_says(kind):
    presets = kind.load_presets()
    tables = presets.values() if kind.by_model else [presets]
    assert all({"paper", "small"} <= set(table) for table in tables)
    for names in kind.models.values():
        assert set(names) == set(presets), "a model for each preset"
    assert set(kind.upstream) <= set(KINDS)
    parameters = list(inspect.signature(named(kind.train)).parameters)
    taken = [*(f"{role}_path" for role in kind.upstream), *(f"{role}_name" for role in kind.models)]
    assert parameters == ["dataset", *taken, "settings", "seed", "out", "resume", "quiet"]


def test_a_training_gets_its_upstream_and_models_in_order(monkeypatch, tmp_path):
    def train(*given, **options):
        return given, options

    monkeypatch.setattr("allmrec_jax.training.stage2.train_stage2", train)
    settings = KINDS["stage2"].settings("small", {"steps": 3})
    upstream = {"stage1": tmp_path / "one", "cf": tmp_path / "cf"}
    given, options = KINDS["stage2"].run("data", settings, 5, tmp_path, upstream=upstream, models={"llm": "m"})
    assert given == ("data", tmp_path / "cf", tmp_path / "one", "m", settings, 5, tmp_path)
    assert settings.steps == 3 and options == {"resume": False, "quiet": False}


def test_what_makes_a_kind_is_not_chosen():
    assert KINDS["mlp-llm"].settings("paper", {"item_vectors": "joint"}).kind == "mlp-llm"
    with pytest.raises(UserError, match="unknown preset 'huge'"):
        KINDS["cf"].settings("huge", model="sasrec")


def test_models_of_a_preset():
    assert preset_models("small") == {
        "encoder": "sbert-nano",
        "longformer": "allenai/longformer-base-4096",
        "llm": "opt-nano",
    }
    assert preset_models("paper")["llm"] == "facebook/opt-6.7b"


def test_reading_the_records_imports_nothing_heavy():
    program = (
        "import sys\nfrom allmrec_jax.trained.kinds import KINDS\nassert KINDS['cf'].about\n"
        "print(*{'jax', 'polars', 'torch', 'transformers', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == ""
