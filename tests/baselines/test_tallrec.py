"""TALLRec: what is trained and what stays, resuming, the export, and that it learns what there is to learn."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_families
import tiny_llm
from click.testing import CliRunner

from allmrec_jax.baselines import tallrec
from allmrec_jax.baselines.tallrec import PRESETS, TallrecSettings, TallrecState, make_batch, make_step, train_tallrec
from allmrec_jax.cli import allmrec
from allmrec_jax.data.candidates import make_candidates
from allmrec_jax.data.dataset import write_dataset
from allmrec_jax.errors import UserError
from allmrec_jax.metrics import target_ranks
from allmrec_jax.models.llm.families import init_params
from allmrec_jax.models.llm.lora import init_adapter
from allmrec_jax.pretrained.frozen_llm import prompt_tables
from allmrec_jax.pretrained.llm import save_checkpoint
from allmrec_jax.pretrained.peft import load_adapter
from allmrec_jax.runs import load_run
from allmrec_jax.trained.tallrec import load_tallrec
from allmrec_jax.training.metrics import read_lines
from allmrec_jax.training.stage2 import make_optimizer
from allmrec_jax.training.stage2_batches import Stage2Sampler

CONFIG = tiny_llm.config(hidden_size=32, word_embed_proj_dim=32, ffn_dim=64)

SETTINGS = TallrecSettings(
    steps=80, batch_size=8, learning_rate=0.005, schedule="cosine", history_length=1, title_max_tokens=8,
    dtype="float32", choose="last",
)  # fmt: skip
TITLES = TallrecSettings(**{**dataclasses.asdict(SETTINGS), "protocol": "titles", "steps": 40})
USERS, MOONS, FOXES = 300, 8, 24


@pytest.fixture(autouse=True)
def promotion():
    """optax raises a float to an integer power, which strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def write(path, sequences):
    return write_dataset(
        path,
        name="Planted",
        items=np.concatenate(sequences),
        offsets=np.cumsum([0, *map(len, sequences)]),
        titles=[f"Moon {i}" for i in range(MOONS)] + [f"Red Fox {i}" for i in range(FOXES)],
        descriptions=[""] * (MOONS + FOXES),
    )


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Users take six foxes and then turn to moons, which are rarer: the title tells what comes, popularity misleads."""
    rng = np.random.default_rng(0)
    foxes = [MOONS + 1 + rng.permutation(FOXES)[:6] for _ in range(USERS)]
    moons = [1 + rng.permutation(MOONS)[:3] for _ in range(USERS)]
    return write(
        tmp_path_factory.mktemp("planted") / "data", [np.concatenate(p) for p in zip(foxes, moons, strict=True)]
    )


@pytest.fixture(scope="module")
def shuffled(tmp_path_factory):
    """The same numbers of users and items, and nothing to learn."""
    rng = np.random.default_rng(1)
    sequences = [1 + rng.permutation(MOONS + FOXES)[:9] for _ in range(USERS)]
    return write(tmp_path_factory.mktemp("shuffled") / "data", sequences)


@pytest.fixture(scope="module")
def llm_path(tmp_path_factory):
    """Random and wider than the other tests', its words apart enough for attention to tell them."""
    path = tmp_path_factory.mktemp("llm") / "llm"
    params = init_params(CONFIG, jax.random.key(0))
    params["embed_tokens"] = {"embedding": 4.0 * params["embed_tokens"]["embedding"]}
    save_checkpoint(path, CONFIG, params, tiny_llm.tokenizer())
    return path


def hits(dataset, path):
    """Per test user whether the trained system, and popularity, rank the target first."""
    asked = make_candidates(dataset, cut="test", count=8, max_users=200)
    histories, _ = dataset.history(asked.users, "test", SETTINGS.history_length)
    recommender = load_tallrec(path).recommender(dataset.titles, batch_size=50)
    scores = recommender.rank(histories, asked.candidates), dataset.train_count[asked.candidates]
    return [(target_ranks(each, asked.target_column) == 1).astype(float) for each in scores]


def gain(dataset, llm_path, settings, out):
    """Hit@1 over popularity's, and its standard error, of 0.02 at least."""
    ours, popularity = hits(dataset, train_tallrec(dataset, llm_path, settings, 0, out, quiet=True))
    return (ours - popularity).mean(), max((ours - popularity).std() / len(ours) ** 0.5, 0.02)


@pytest.mark.parametrize("settings", [SETTINGS, TITLES], ids=["yes-no", "titles"])
def test_it_learns_what_is_planted(planted, llm_path, tmp_path, settings):
    found, error = gain(planted, llm_path, settings, tmp_path)
    assert found > 3 * error


@pytest.mark.parametrize("settings", [SETTINGS, TITLES], ids=["yes-no", "titles"])
def test_it_finds_nothing_in_shuffled_interactions(shuffled, llm_path, tmp_path, settings):
    found, error = gain(shuffled, llm_path, settings, tmp_path)
    assert abs(found) < 2 * error


@pytest.fixture(scope="module")
def parts(planted, llm_path):
    llm, params = tallrec.load_llm(llm_path, "float32")
    tables = prompt_tables(llm_path, llm.config, planted.titles, 8)
    return dataclasses.replace(llm, lora_dropout=0.2), params, tables


def sampled(planted, parts, settings, index):
    sampler = Stage2Sampler(planted, None, parts[2], settings.sampling, 0)
    return make_batch(sampler, settings, index)


def test_only_the_adapter_changes(planted, parts):
    llm, params, _ = parts
    optimizer = make_optimizer(SETTINGS.sampling, 4)
    adapter = init_adapter(llm.config, 2, jax.random.key(0))
    state = TallrecState(adapter, optimizer.init(adapter), jnp.zeros((), jnp.int32))
    fresh, before = jax.tree.map(np.array, adapter), jax.tree.map(np.array, params)
    step, old = make_step(llm, optimizer, 2.0, seed=0), jax.tree.leaves(state)
    for index in range(3):
        state, metrics = step(state, params, sampled(planted, parts, SETTINGS, index))
    assert all(leaf.is_deleted() for leaf in old), "the state is donated"
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.array, params))
    moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - b).max(), state.adapter, fresh)
    assert min(jax.tree.leaves(moved)) > 0
    assert int(state.step) == 3 and set(metrics) == {"loss", "exact", "gradient_norm"}


def test_dropout_differs_from_step_to_step(planted, parts):
    llm, params, _ = parts
    optimizer = make_optimizer(SETTINGS.sampling, 4)
    adapter = jax.tree.map(lambda x: x + 0.1, init_adapter(llm.config, 2, jax.random.key(0)))
    batch = sampled(planted, parts, SETTINGS, 0)

    def loss(number, dropout):
        state = TallrecState(jax.tree.map(jnp.array, adapter), optimizer.init(adapter), jnp.int32(number))
        module = dataclasses.replace(llm, lora_dropout=dropout)
        return float(make_step(module, optimizer, 2.0, seed=0)(state, params, batch)[1]["loss"])

    assert loss(0, 0.2) == loss(0, 0.2) != loss(1, 0.2)
    assert loss(0, 0.0) == loss(1, 0.0)


def test_yes_no_batches_ask_about_the_target_and_about_items_never_met(planted, parts):
    settings = dataclasses.replace(SETTINGS, batch_size=32, negatives=3, positions="all")
    prompts = sampled(planted, parts, settings, 5)
    again = sampled(planted, parts, settings, 5)
    jax.tree.map(np.testing.assert_array_equal, prompts, again)
    texts = [parts[2].tokenizer.decode(row[:length]) for row, length in zip(prompts.ids, prompts.lengths, strict=True)]
    assert len(texts) == 32 and sum(text.endswith(" Yes.</s>") for text in texts) == 8
    asked = [text.split(' the item "')[1].split('"')[0] for text in texts]
    for start in range(0, 32, 4):
        assert len(set(asked[start : start + 4])) == 4
        known = texts[start].split(" in the previous")[0]
        assert not any(f'"{title}"' in known for title in asked[start : start + 4])


def test_resume_is_bit_for_bit(planted, llm_path, tmp_path, monkeypatch):
    monkeypatch.setattr(tallrec, "SAVE_EVERY", 2)
    settings = dataclasses.replace(SETTINGS, steps=4, dropout=0.2)

    def train(out, **kwargs):
        return train_tallrec(planted, llm_path, settings, 0, tmp_path / out, quiet=True, **kwargs)

    def adapter(path):
        return load_adapter(path / "export" / "adapter", CONFIG).adapter

    unbroken = train("unbroken")

    def killed(sampler, settings, index):
        if index == 3:
            raise KeyboardInterrupt
        return make_batch(sampler, settings, index)

    monkeypatch.setattr(tallrec, "make_batch", killed)
    with pytest.raises(KeyboardInterrupt):
        train("broken")
    monkeypatch.setattr(tallrec, "make_batch", make_batch)
    resumed = train("broken", resume=True)
    jax.tree.map(np.testing.assert_array_equal, adapter(unbroken), adapter(resumed))
    assert np.abs(adapter(unbroken)["q_proj"]["b"]).max() > 0


@pytest.mark.parametrize("settings", [SETTINGS, TITLES], ids=["yes-no", "titles"])
def test_projections_that_are_not_square_are_adapted(planted, tmp_path, settings):
    """A Llama's values are narrower than its queries."""
    llm, params = tiny_families.llm("llama")
    save_checkpoint(tmp_path / "llm", llm.config, params, tiny_llm.tokenizer())
    path = train_tallrec(planted, tmp_path / "llm", dataclasses.replace(settings, steps=2), 0, tmp_path, quiet=True)
    lora = load_adapter(path / "export" / "adapter", llm.config)
    shapes = {name: (low["a"].shape[1], low["b"].shape[2]) for name, low in lora.adapter.items()}
    assert shapes == {"q_proj": (32, 64), "v_proj": (32, 16)}
    assert all(np.abs(low["b"]).max() > 0 for low in lora.adapter.values())
    histories, shown = np.array([[1, 2, 3]]), np.array([[4, 5, 6, 7]])
    scores = load_tallrec(path).recommender(planted.titles).rank(histories, shown)
    assert scores.shape == (1, 4)
    assert np.isfinite(scores).all()


def test_the_command_chooses_on_validation_and_its_kind_names_the_protocol(planted, llm_path, tmp_path):
    options = ["--preset", "small", "--steps", "0", "--epochs", "2", "--batch-size", "150", "--positions", "last"]
    options += ["--choose", "best", "--validation-users", "20", "--protocol", "yes-no"]
    told = CliRunner().invoke(
        allmrec,
        [
            "train",
            "tallrec",
            "--data",
            str(planted.path),
            "--llm",
            str(llm_path),
            *options,
            "--checkpoints",
            str(tmp_path),
        ],
        catch_exceptions=False,
    )
    path = tmp_path / "Planted" / "tallrec-yes-no" / told.stdout.splitlines()[-1].split("/")[-1]
    about = load_run(path)
    assert about["kind"] == "tallrec-yes-no" and set(about["upstream"]) == {"llm"}
    lines = [line["step"] for line in read_lines(path / "metrics.jsonl") if "valid/hit@1" in line]
    assert lines == [4, 8]  # 300 samples, 75 in a batch


def test_bad_settings_and_another_language_model_are_refused(planted, llm_path, tmp_path):
    with pytest.raises(UserError, match="does not hold whole samples"):
        TallrecSettings(batch_size=4, negatives=2)
    with pytest.raises(UserError, match="rank is 0"):
        TallrecSettings(rank=0)
    path = train_tallrec(planted, llm_path, dataclasses.replace(SETTINGS, steps=1), 0, tmp_path, quiet=True)
    llm, params = tiny_llm.model()
    save_checkpoint(tmp_path / "other", llm.config, params, tiny_llm.tokenizer())
    with pytest.raises(UserError, match="not the language model"):
        load_tallrec(path).recommender(planted.titles, llm=tmp_path / "other")


def test_presets():
    paper = PRESETS["paper"]
    assert (paper.rank, paper.alpha, paper.dropout, paper.learning_rate, paper.batch_size) == (8, 16, 0.05, 1e-4, 4)
