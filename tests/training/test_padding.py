"""How much of what stage 2 processes is padding, on the embedded data and, where they are, on real prompts."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from allmrec_jax.data.dataset import Dataset, load_dataset
from allmrec_jax.data.prepare import prepare
from allmrec_jax.embedded.synthetic import PRESETS as SYNTHETIC
from allmrec_jax.embedded.synthetic import generate
from allmrec_jax.pretrained.llm import load_tokenizer
from allmrec_jax.prompts import PromptTables, title_table
from allmrec_jax.training.stage2_batches import Stage2Sampler
from allmrec_jax.training.stage2_settings import PRESETS, Stage2Settings


def sampler(dataset: Dataset, settings: Stage2Settings) -> Stage2Sampler:
    tokenizer = load_tokenizer("opt-nano")
    tables = PromptTables(tokenizer, title_table(tokenizer, dataset.titles, settings.title_max_tokens), 2048)
    return Stage2Sampler(dataset, None, tables, dataclasses.replace(settings, user_vector=False), 0)


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("embedded")
    generate(root / "raw", 0, SYNTHETIC["tiny"])
    prepare(root / "raw" / "Nano_Movies.json.gz", root / "data")
    return load_dataset(root / "data")


def real_share(dataset: Dataset, settings: Stage2Settings, steps: int | None = None) -> tuple[float, int]:
    """Of an epoch's tokens, or of its first steps'; and in how many shapes the batches come."""
    batches = sampler(dataset, settings)
    for index in range(steps or -(-len(batches) // settings.batch_size)):
        batches(index)
    return batches.tokens_read / batches.tokens_processed, len(batches.shapes)


def test_embedded_data(embedded: Dataset) -> None:
    plain = dataclasses.replace(PRESETS["paper"], batch_size=16)
    before, _ = real_share(embedded, plain, steps=32)
    after, shapes = real_share(embedded, dataclasses.replace(plain, sort_batches=16), steps=32)
    assert before < 0.9 <= after
    assert shapes <= 8


def test_real_prompts(shared_data: Path, tmp_path: Path) -> None:
    """Two groups of an epoch: the others are like them."""
    prepare(shared_data / "amazon-scientific", tmp_path / "data")
    dataset = load_dataset(tmp_path / "data")
    before, shapes = real_share(dataset, PRESETS["paper"], steps=64)
    assert shapes <= 6  # the prompts' lengths; with as many widths of answers it were twice as many
    after, shapes = real_share(dataset, dataclasses.replace(PRESETS["paper"], sort_batches=64), steps=64)
    assert before < 0.9 <= after
    assert shapes <= 8


def test_samples_are_those_drawn_for_the_group(embedded: Dataset) -> None:
    settings = dataclasses.replace(PRESETS["paper"], batch_size=4, sort_batches=5)
    batches = sampler(embedded, settings)
    drawn = batches.draw(1, 20)
    wanted = sorted(tuple(row) for row in np.concatenate([drawn.histories[:, -10:], drawn.candidates], axis=1).tolist())
    prompts = [batches(index).prompts for index in range(5, 10)]
    assert sorted(tuple(row) for each in prompts for row in each.items.tolist()) == wanted
    assert {each.targets.shape[1] for each in prompts} == {batches(0).prompts.targets.shape[1]}
    lengths = [(each.lengths.min(), each.lengths.max()) for each in prompts]
    assert lengths != sorted(lengths)  # the batches come in random order
    # Apart only by how the answer's length counts, the batches lie beside each other.
    assert all(one[1] <= other[0] + 1 for one, other in zip(sorted(lengths), sorted(lengths)[1:], strict=False))
    np.testing.assert_array_equal(sampler(embedded, settings)(7).prompts.ids, prompts[2].ids)
