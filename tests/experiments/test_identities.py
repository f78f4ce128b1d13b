"""Runs made by earlier versions are found again: each system's last training has the identity that it always had."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from allmrec_jax.experiments.graph import Workplace
from allmrec_jax.experiments.rows import Recipes, known_rows, rows_of
from allmrec_jax.trained.kinds import preset_models

IDENTITIES = {
    "NCF": ("e8e16a5c38e0", "426aafb80770"),
    "NextItNet": ("53c6871f6228", "03eab9803203"),
    "GRU4Rec": ("df93c69f33d2", "a25ece542f9d"),
    "SASRec": ("1b53a51c1f41", "eebede38eaf3"),
    "MoRec": ("4c76e79373ea", "922b74551813"),
    "CTRL": ("29f918cfa25a", "578b1df2bb57"),
    "RECFORMER": ("6dec9346a14a", "7dcb3f6fbc40"),
    "RECFORMER (tiny)": ("1a07cfbe796d", "43e65a91b202"),
    "TALLRec (yes-no)": ("0a77bd0151d1", "94b65ca46ee2"),
    "TALLRec (titles)": ("0125e75f882c", "edf5b4785a19"),
    "MLP-LLM": ("24586e8758c6", "ad0c102182c9"),
    "A-LLMRec": ("ca9e344f70ad", "075ce62e7f72"),
    "A-LLMRec (SBERT)": ("ca9e344f70ad", "075ce62e7f72"),
    "A-LLMRec_all": ("514c7ae90c50", "b86af77e5c61"),
    "A-LLMRec, reduced": ("e2858e2f2e8a", "075ce62e7f72"),
    "A-LLMRec (NCF)": ("9127896bbbc6", "7453a0a24e04"),
    "A-LLMRec (NextItNet)": ("11865318584d", "0288a3824a76"),
    "A-LLMRec (GRU4Rec)": ("5a4992dca925", "eb4be4ce7438"),
    "w/o L_matching": ("9cf4e24d4a68", "3345807ecabf"),
    "w/o L_item-recon and L_text-recon": ("ce3e75c17a20", "beb60dad882e"),
    "w/o L_rec": ("dc45f6330592", "b838411aeb90"),
    "frozen SBERT": ("f16f44f2fd37", "3877172d22ac"),
    "w/o user representation": ("9ee767ab1999", "a2a09b049767"),
    "w/o joint embedding": ("cc0f4643a358", "db12654381f6"),
    "random joint embedding": ("44d33aa9aad3", "72278ae12a54"),
}
"""The first digits at seed 1, with preset ``small`` and with ``paper``, of a data set and models of made-up hashes."""


class AnyModels(Workplace):
    """Pretrained models need not be there."""

    def model_hash(self, role, settings):
        return f"hash of {role} {self.models[role]} {settings.dtype if role == 'encoder' else ''}"


def test_every_trained_system_is_listed():
    every = [*known_rows(), *rows_of("table8"), *rows_of("table9")]
    assert [name for name in every if Recipes("small", {}).row(name, 0).trainings] == list(IDENTITIES)


@pytest.mark.parametrize(("number", "preset"), [(0, "small"), (1, "paper")])
def test_identities_do_not_change(number, preset):
    dataset = SimpleNamespace(name="D", hash="d" * 64)
    work = AnyModels(dataset, Path("checkpoints"), preset_models(preset))
    found = {name: Recipes(preset, {}).row(name, 1).trainings[-1] for name in IDENTITIES}
    assert {name: work.identity(last)[:12] for name, last in found.items()} == {
        name: each[number] for name, each in IDENTITIES.items()
    }
