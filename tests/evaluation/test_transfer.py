"""Systems over another data set's items: what they trained stays, what they know of items is theirs no more."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from allmrec_jax.evaluation.transfer import stage1_over, untrained_items
from allmrec_jax.models.alignment import Alignment
from allmrec_jax.models.cf.ncf import NCF, NCFConfig, NeuMF
from allmrec_jax.models.cf.sasrec import SASRec, SASRecCF, SASRecConfig
from allmrec_jax.report import paper
from allmrec_jax.training.stage1_export import Stage1Export
from allmrec_jax.training.stage1_settings import Stage1Settings

HISTORIES = np.array([[0, 1, 4], [2, 3, 6]])


def models():
    sasrec = SASRecConfig(5, 4, 1, 1, 3, 0.0)
    ncf = NCFConfig(2, 5, 4, 8, 0.0)
    return [
        SASRecCF(sasrec, SASRec(sasrec).init_params(jax.random.key(0)), "ab" * 32),
        NCF(ncf, NeuMF(ncf).init_params(jax.random.key(0)), "cd" * 32),
    ]


@pytest.mark.parametrize("model", models(), ids=["sasrec", "ncf"])
def test_only_the_item_table_is_drawn_anew(model):
    other, again = untrained_items(model, 9), untrained_items(model, 9)
    assert other.num_items == 9 and other.item_vectors().shape[0] == 10 and other.identity == model.identity
    np.testing.assert_array_equal(other.item_vectors(), again.item_vectors())
    assert not np.isin(other.item_vectors(), model.item_vectors()).any()
    kept = {name: leaf for name, leaf in model.params.items() if name != "item_embedding"}
    for name, leaf in kept.items():
        jax.tree.map(np.testing.assert_array_equal, other.params[name], leaf)
    assert np.isfinite(np.asarray(other.score_catalogue(None, HISTORIES))).all()


def test_joint_embeddings_are_those_of_untrained_vectors_and_texts_are_encoded(tmp_path, monkeypatch):
    (sasrec, _) = models()
    alignment = Alignment(4, 6, 3)
    params = alignment.init(jax.random.key(1), np.zeros((1, 4)), np.zeros((1, 6)))["params"]
    old = np.full((6, 3), 0.5, np.float32)
    export = Stage1Export(old, old, np.zeros(6, bool), params, Stage1Settings(), tmp_path)
    seen = []

    def encode(self, texts):
        seen.append(list(texts))
        return np.tile(np.arange(len(texts))[:, None], (1, 3)) / 10.0

    monkeypatch.setattr(Stage1Export, "encode_texts", encode)
    target = SimpleNamespace(titles=["", *"abcdefghi"], descriptions=[""] * 10)
    other = untrained_items(sasrec, 9)
    made = stage1_over(export, other, target)
    assert seen[0][1] == "Title: a, Description: No Description" and len(seen[0]) == 10
    expected = alignment.apply({"params": params}, other.item_vectors(), method="encode_items")
    np.testing.assert_allclose(made.item_latents("joint")[1:], np.asarray(expected)[1:], rtol=1e-6)
    np.testing.assert_array_equal(made.item_latents("text")[:, 0], np.arange(10) / 10.0)
    assert not made.item_latents("joint")[0].any()


def test_the_papers_one_pair_of_domains_stands_beside_every_row():
    assert paper.hit_at_1("A-LLMRec (SBERT)", "all", "table7_cross_domain") == {"Video_Games": 0.1203}
    assert paper.hit_at_1("LLM-Only", "all", "table7_cross_domain") == {}
