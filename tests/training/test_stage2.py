import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_families
import tiny_llm

from allmrec_jax.baselines import mlp_llm
from allmrec_jax.data.dataset import write_dataset
from allmrec_jax.errors import UserError
from allmrec_jax.models.cf.protocol import load_cf
from allmrec_jax.models.projectors import embed_prompts, init_params
from allmrec_jax.pretrained.llm import save_checkpoint
from allmrec_jax.prompts import PromptTables, title_table
from allmrec_jax.runs import Run, load_run
from allmrec_jax.settings import hashed_fields
from allmrec_jax.sharding import use_mesh
from allmrec_jax.trained.stage2 import load_stage2
from allmrec_jax.training import stage2
from allmrec_jax.training.metrics import read_lines
from allmrec_jax.training.stage2 import (
    Frozen,
    answer_loss,
    item_latents,
    make_optimizer,
    make_step,
    train_stage2,
)
from allmrec_jax.training.stage2_batches import ITEM_TOKENS, Stage2Batch, Stage2Sampler
from allmrec_jax.training.stage2_settings import PRESETS, Stage2Settings
from allmrec_jax.training.state import TrainState
from allmrec_jax.training.warm_start import warm_start as stage2_warm_start

ITEMS, USERS, USER_DIM, ITEM_DIM = 14, 9, 5, 6
SETTINGS = Stage2Settings(
    steps=4, batch_size=4, learning_rate=1e-2, history_length=3, candidates=4, dtype="float32", choose="last"
)


@pytest.fixture(autouse=True)
def promotion():
    """optax raises a float to an integer power, which strict promotion refuses; our loss runs under it below."""
    with jax.numpy_dtype_promotion("standard"):
        yield


class LiveCF:
    """A stand-in for a live CF model: a user is the sum of what the history's items are, noise with a key."""

    live, num_items, dim, identity = True, ITEMS, USER_DIM, "live"

    def at(self, cut):
        return self

    def user_vectors(self, users, items, *, key=None):
        table = np.sin(np.arange((ITEMS + 1) * USER_DIM)).reshape(ITEMS + 1, USER_DIM).astype(np.float32)
        noise = 0.0 if key is None else np.asarray(jax.random.normal(key, (len(items), USER_DIM)))
        return table[np.asarray(items)].sum(axis=1) + noise


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    lengths, training = np.array([2, 3, 4, 5, 6, 7, 8, 4, 1]), np.array([2, 1, 2, 3, 4, 5, 6, 2, 1])
    # Steps of 3 through 14 items repeat none; user u's last training item is u + 1.
    sequences = [
        (u + 3 * (np.arange(n) - t + 1)) % ITEMS + 1 for u, (n, t) in enumerate(zip(lengths, training, strict=True))
    ]
    return write_dataset(
        tmp_path_factory.mktemp("data") / "Tiny",
        name="Tiny",
        items=np.concatenate(sequences),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        titles=[
            f"{word} {number}" for number in range(2) for word in ("Red", "Moon", "Fox", "It", "Ship", "Deep", "Blue")
        ],
        descriptions=[""] * ITEMS,
    )


@pytest.fixture(scope="module")
def tables(dataset):
    return PromptTables(tiny_llm.tokenizer(), title_table(tiny_llm.tokenizer(), dataset.titles, 16), 512)


@pytest.fixture(scope="module")
def parts(dataset, tables):
    """A post-norm model with projections in and out: none of its weights has a shape of the projectors'."""
    llm, llm_params = tiny_llm.model(word_embed_proj_dim=8, do_layer_norm_before=False)
    latents = np.random.default_rng(1).standard_normal((ITEMS + 1, ITEM_DIM)).astype(np.float32)
    frozen = Frozen(jax.tree.map(jnp.asarray, llm_params), jnp.asarray(latents))
    params = init_params(8, USER_DIM, ITEM_DIM, jax.random.key(0))
    return llm, frozen, params, Stage2Sampler(dataset, LiveCF(), tables, SETTINGS, seed=0)(0)


def dot_products(jaxpr):
    """Shapes of the results of all matrix products in a program, those of inner programs among them."""
    shapes = set()
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            shapes.add(equation.outvars[0].aval.shape)
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                shapes |= dot_products(inner)
    return shapes


def test_no_weight_gradient_of_the_language_model_is_computed(parts):
    llm, frozen, params, batch = parts
    layers = [x.shape[1:] for x in jax.tree.leaves(frozen.llm["layers"])]
    matrices = {shape for shape in layers if len(shape) == 2} | {
        (8, 16),
        (16, 8),
        frozen.llm["embed_tokens"]["embedding"].shape,
    }
    matrices |= {shape[::-1] for shape in matrices}
    optimizer = make_optimizer(SETTINGS, 4)
    state = TrainState(params, optimizer.init(params))
    program = dot_products(jax.make_jaxpr(make_step(llm, optimizer))(state, frozen, batch).jaxpr)
    assert (8, 8) in program and not program & matrices

    def whole(frozen):
        return answer_loss(llm, params, frozen, batch)[0]

    with jax.numpy_dtype_promotion("strict"):
        jax.eval_shape(jax.grad(lambda params: answer_loss(llm, params, frozen, batch)[0]), params)

    # The same search finds them where they are: in the gradient by the language model's weights.
    assert dot_products(jax.make_jaxpr(jax.grad(whole))(frozen).jaxpr) & matrices >= {(16, 40), (40, 16)}


def copies(tree):
    return jax.tree.map(lambda x: np.array(x), tree)


def test_state_is_donated_and_frozen_weights_stay_bit_for_bit(parts):
    llm, frozen, params, batch = parts
    optimizer = make_optimizer(SETTINGS, 4)
    state = jax.tree.map(jnp.array, TrainState(params, optimizer.init(params)))
    before, old = copies(frozen), jax.tree.leaves(state)
    step = make_step(llm, optimizer)
    for _ in range(2):
        state, metrics = step(state, frozen, batch)
    assert all(leaf.is_deleted() for leaf in old)
    jax.tree.map(np.testing.assert_array_equal, before, copies(frozen))
    moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(), state.params, params)
    assert min(jax.tree.leaves(moved)) > 0
    assert set(metrics) == {"loss", "exact", "gradient_norm"}


def test_loss_is_the_mean_over_title_quote_and_end(parts):
    llm, frozen, params, batch = parts
    prompts, variables = batch.prompts, {"params": frozen.llm}
    embeds = embed_prompts(llm, frozen.llm, params, prompts, batch.users, frozen.latents)
    positions = np.broadcast_to(np.arange(embeds.shape[1]), embeds.shape[:2])
    hidden, _ = llm.apply(variables, embeds, positions)
    logits = np.asarray(llm.apply(variables, hidden, method="logits"), np.float64)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    losses = [
        -logp[b, t - 1, prompts.ids[b, t]]
        for b in range(len(logp))
        for t in range(prompts.target_start[b], prompts.lengths[b])
    ]
    optimizer = make_optimizer(SETTINGS, 4)
    _, metrics = make_step(llm, optimizer)(TrainState(copies(params), optimizer.init(params)), frozen, batch)
    # One float32 forward pass against another with the head in float64: measured 2e-7.
    np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-5)
    assert prompts.target_mask.sum() == len(losses)


def test_accumulation_gives_the_same_step(parts):
    llm, frozen, params, batch = parts
    optimizer = make_optimizer(SETTINGS, 4)

    def gradient_step(accumulation):
        state = TrainState(copies(params), optimizer.init(params))
        return make_step(llm, optimizer, accumulation)(state, frozen, batch)

    (whole, metrics), (parted, parted_metrics) = gradient_step(1), gradient_step(2)
    # Sums in another order: the loss agrees to float32 rounding. Adam's first step takes the gradient's sign, in which
    # a parameter with a gradient near rounding could differ by all of it: the moments are compared instead.
    np.testing.assert_allclose(parted_metrics["loss"], metrics["loss"], rtol=1e-6)
    np.testing.assert_allclose(parted_metrics["exact"], metrics["exact"])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6),
        whole.opt_state[0].mu,
        parted.opt_state[0].mu,
    )


def test_a_few_steps_learn_a_batch(parts):
    llm, frozen, params, batch = parts
    optimizer = make_optimizer(dataclasses.replace(SETTINGS, learning_rate=3e-4), 20)
    step, state, losses = make_step(llm, optimizer), TrainState(copies(params), optimizer.init(params)), []
    for _ in range(12):
        state, metrics = step(state, frozen, batch)
        losses.append(float(metrics["loss"]))
    # A random language model obeys its prompt little: that the loss falls at every step is what can be asked.
    assert np.all(np.diff(losses) < 0)


def test_schedule_warms_up_and_decays():
    optimizer = make_optimizer(dataclasses.replace(SETTINGS, schedule="cosine", warmup_steps=5), 20)
    params = {"x": jnp.ones(())}
    state, rates = optimizer.init(params), []
    for _ in range(20):
        update, state = optimizer.update({"x": jnp.ones(())}, state, params)
        rates.append(-float(update["x"]))  # Adam's step for a constant gradient of 1 is the learning rate
    assert rates[0] == 0.0 and np.argmax(rates) == 5
    np.testing.assert_allclose(rates[5], 1e-2, rtol=1e-4)
    assert np.all(np.diff(rates[:6]) > 0) and np.all(np.diff(rates[5:]) < 0) and rates[-1] < 2e-3


def sampled(dataset, tables, cf=None, **changes):
    return Stage2Sampler(dataset, cf or LiveCF(), tables, dataclasses.replace(SETTINGS, **changes), seed=3)


def shown(sampler, batch):
    prompts = batch.prompts
    width = SETTINGS.history_length
    return prompts.items[:, :width], prompts.items[:, width:]


def targets_of(sampler, batch):
    """The answers' items, found by their tokens."""
    answers = {tuple(sampler.tables.answer(item).tolist()): item for item in range(1, ITEMS + 1)}
    prompts = batch.prompts
    return [
        answers[tuple(prompts.ids[b, prompts.target_start[b] : prompts.lengths[b]].tolist())]
        for b in range(len(prompts.ids))
    ]


def test_last_position_samples(dataset, tables):
    sampler = sampled(dataset, tables, batch_size=1)
    assert len(sampler) == 7  # of nine users, one has a single interaction and one a single training item
    seen = []
    for index in range(7):
        batch = sampler(index)
        history, _ = shown(sampler, batch)
        seen.append((*history[0][history[0] > 0].tolist(), *targets_of(sampler, batch)))
    expected = [tuple(dataset.train_sequence(user)[-4:].tolist()) for user in (0, 2, 3, 4, 5, 6, 7)]
    assert sorted(seen) == sorted(expected)


def test_all_position_samples(dataset, tables):
    sampler = sampled(dataset, tables, batch_size=1, positions="all")
    expected = []
    for user in range(USERS):
        sequence = dataset.train_sequence(user).tolist()
        expected += [tuple(sequence[max(0, end - 3) : end + 1]) for end in range(1, len(sequence))]
    assert len(sampler) == len(expected)
    seen = []
    for index in range(len(sampler)):
        batch = sampler(index)
        history, _ = shown(sampler, batch)
        seen.append((*history[0][history[0] > 0].tolist(), *targets_of(sampler, batch)))
    assert sorted(seen) == sorted(expected)


def test_epochs_follow_each_other_without_a_gap(dataset, tables):
    sampler = sampled(dataset, tables, batch_size=4)
    drawn = np.concatenate([sampler.draw(index, 4).users for index in range(7)])
    epochs = drawn.reshape(4, len(sampler))  # 28 samples
    assert all(set(epoch) == set(sampler.users) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 4


def test_candidates_hold_the_target_once_and_nothing_of_the_training_history(dataset, tables):
    sampler = sampled(dataset, tables, batch_size=7)
    places, later = [], set()
    for index in range(40):
        batch = sampler(index)
        targets, (_, candidates) = targets_of(sampler, batch), shown(sampler, batch)
        for target, row in zip(targets, candidates, strict=True):
            user = target - 1
            sequence = dataset.train_sequence(user)
            assert sequence[-1] == target
            assert (row == target).sum() == 1 and len(set(row.tolist())) == 4
            assert not set(row.tolist()) & set(sequence[:-1].tolist())
            later |= set(row.tolist()) & set(dataset.sequence(user)[-2:].tolist()) - {target}
            places.append(int(np.argmax(row == target)))
    assert later  # validation and test items are ordinary negatives: leaving them out would mark them
    assert set(places) == {0, 1, 2, 3}


def test_batches_depend_on_seed_and_index_only(dataset, tables):
    one, other = sampled(dataset, tables), sampled(dataset, tables)
    other(0)
    jax.tree.map(np.testing.assert_array_equal, one(5), other(5))
    assert (one(5).prompts.items != one(6).prompts.items).any()


def test_candidates_are_drawn_anew_each_time_and_for_each_seed(dataset, tables):
    def places(seed, index):
        """Where the targets of a batch stand among the candidates: told by the draw alone."""
        question = Stage2Sampler(dataset, LiveCF(), tables, SETTINGS, seed).draw(index, 32)
        return np.argmax(question.candidates == question.targets[:, None], axis=1).tolist()

    assert places(3, 0) == places(3, 0)
    assert places(3, 0) != places(3, 1) and places(3, 0) != places(4, 0)


def test_cf_dropout_is_live_in_train_mode_only(dataset, tables):
    plain, live = sampled(dataset, tables)(1), sampled(dataset, tables, cf_train_mode=True)(1)
    np.testing.assert_array_equal(plain.prompts.ids, live.prompts.ids)
    assert (plain.users != live.users).all()
    np.testing.assert_array_equal(live.users, sampled(dataset, tables, cf_train_mode=True)(1).users)


def test_ablations_leave_vectors_out(dataset, tables):
    batch = sampled(dataset, tables, user_vector=False, item_vectors="none")(0)
    assert batch.users is None and not batch.prompts.slot.any()


def test_presets_are_the_papers_and_the_official_codes():
    paper, official = PRESETS["paper"], PRESETS["official"]
    assert (paper.batch_size, paper.epochs, paper.learning_rate, paper.history_length) == (4, 5, 1e-4, 10)
    assert (official.batch_size, official.epochs, official.cf_train_mode, official.choose) == (2, 5, True, "last")
    assert all(preset.candidates == 20 and preset.beta2 == 0.98 for preset in PRESETS.values())


class FakeStage1:
    """Stage 1's export as far as stage 2 reads it."""

    def item_latents(self, mode="joint"):
        rng = np.random.default_rng({"joint": 0, "text": 1}[mode])
        return rng.uniform(size=(ITEMS + 1, ITEM_DIM)).astype(np.float32)


def test_item_vector_kinds():
    stage1 = FakeStage1()
    assert item_latents(stage1, "none", 0) is None
    np.testing.assert_array_equal(item_latents(stage1, "text", 0), stage1.item_latents("text"))
    noise = item_latents(stage1, "normal", 0)
    np.testing.assert_array_equal(noise, item_latents(stage1, "normal", 0))
    assert (noise != item_latents(stage1, "normal", 1)).all() and noise.shape == stage1.item_latents().shape
    assert abs(noise.mean()) < 5 / noise.size**0.5 and abs(noise.std() - 1) < 5 / noise.size**0.5  # N(0, 1)


@pytest.fixture
def project(request, dataset, tmp_path, monkeypatch):
    """Upstream runs and a tiny language model on disk, an OPT if no other is asked for: CF arrays, a stage-1 run built
    on them."""
    rng = np.random.default_rng(0)
    arrays = tmp_path / "arrays"
    arrays.mkdir()
    np.save(arrays / "items.npy", rng.standard_normal((ITEMS + 1, USER_DIM)).astype(np.float32))
    for cut in ("train", "valid", "test"):
        np.save(arrays / f"users_{cut}.npy", rng.standard_normal((USERS, USER_DIM)).astype(np.float32))
    upstream = {"cf": load_cf(arrays, dataset).identity}
    stage1 = Run.open(tmp_path / "out", dataset.name, "stage1", SETTINGS, 0, dataset.hash, upstream)
    stage1.finish({})
    llm, params = tiny_families.llm(request.param) if hasattr(request, "param") else tiny_llm.model()
    save_checkpoint(tmp_path / "llm", llm.config, params, tiny_llm.tokenizer())
    monkeypatch.setattr(stage2, "load_stage1", lambda path: FakeStage1())

    def train(settings=SETTINGS, out="out", resume=False):
        where = arrays, stage1.path, tmp_path / "llm"
        return train_stage2(dataset, *where, settings, 0, tmp_path / out, resume=resume, quiet=True)

    return types.SimpleNamespace(train=train, stage1=stage1, path=tmp_path, arrays=arrays)


@pytest.mark.parametrize("project", ["opt", "llama"], indirect=True)
def test_a_run_from_upstreams_to_scores(project, dataset):
    path = project.train(dataclasses.replace(SETTINGS, steps=0, epochs=2, choose="best", validation_users=5))
    about = load_run(path)
    assert set(about["upstream"]) == {"cf", "stage1", "llm"}
    assert about["upstream"]["stage1"] == project.stage1.identity
    lines = read_lines(path / "metrics.jsonl")
    assert [line["step"] for line in lines if "valid/hit@1" in line] == [2, 4]  # 7 samples in fours
    export = load_stage2(path)
    recommender = export.recommender(dataset.titles, export.latents(FakeStage1()), batch_size=2)
    users = dataset.users_with("test")
    histories, _ = dataset.history(users, "test", 50)
    candidates = np.tile(np.arange(1, 5), (len(users), 1))
    vectors = np.load(project.arrays / "users_test.npy")[users]
    scores = recommender.rank(histories, candidates, vectors)
    assert scores.shape == (len(users), 4) and np.isfinite(scores).all()
    rounded = export.recommender(dataset.titles, export.latents(FakeStage1()), batch_size=2, llm_weights="int8")
    assert rounded.llm_params["layers"]["q_proj"]["kernel"].dtype == jnp.int8
    assert project.train(dataclasses.replace(SETTINGS, steps=0, epochs=2, choose="best", validation_users=5)) == path


def test_resume_is_bit_for_bit(project, monkeypatch):
    monkeypatch.setattr(stage2, "SAVE_EVERY", 2)
    unbroken = project.train(out="unbroken")
    original = Stage2Sampler.__call__

    def killed(self, index):
        if index == 3:
            raise KeyboardInterrupt
        return original(self, index)

    monkeypatch.setattr(Stage2Sampler, "__call__", killed)
    with pytest.raises(KeyboardInterrupt):
        project.train(out="broken")
    monkeypatch.setattr(Stage2Sampler, "__call__", original)
    resumed = project.train(out="broken", resume=True)
    one, other = (load_stage2(path).params for path in (unbroken, resumed))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_what_does_not_match_is_refused(project, dataset, tables):
    arrays = load_cf(project.arrays, dataset)
    for change in ({"positions": "all"}, {"cf_train_mode": True}):
        with pytest.raises(UserError, match="needs a live CF model"):
            sampled(dataset, tables, arrays, **change)
    with pytest.raises(UserError, match="does not divide"):
        project.train(dataclasses.replace(SETTINGS, accumulation=3))
    np.save(project.arrays / "items.npy", np.ones((ITEMS + 1, USER_DIM), np.float32))
    with pytest.raises(UserError, match="was built on cf"):
        project.train()


def test_a_chat_template_is_part_of_the_run_and_must_be_there(project):
    chat = dataclasses.replace(SETTINGS, chat=True)
    assert "chat" not in hashed_fields(SETTINGS)  # as in runs made before the setting was there
    assert hashed_fields(chat)["chat"] is True
    with pytest.raises(UserError, match="llm: the tokenizer has no chat template; leave chat off"):
        project.train(chat)


def test_kernels_in_int8_are_another_run(project):
    plain, rounded = (dataclasses.replace(SETTINGS, steps=1, llm_weights=weights) for weights in ("dtype", "int8"))
    assert "llm_weights" not in hashed_fields(plain)  # as in runs made before the setting was there
    paths = [project.train(settings) for settings in (plain, rounded)]
    assert paths[0] != paths[1]
    losses = [read_lines(path / "metrics.jsonl")[-1]["loss"] for path in paths]
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.05)
    assert load_stage2(paths[1]).settings.llm_weights == "int8"


def test_another_language_model_is_refused(project, dataset):
    export = load_stage2(project.train())
    llm, params = tiny_llm.model(num_hidden_layers=1)
    save_checkpoint(project.path / "other", llm.config, params, tiny_llm.tokenizer())
    with pytest.raises(UserError, match="not the language model"):
        export.recommender(dataset.titles, None, llm=project.path / "other")


def test_batch_is_a_pytree_of_arrays(parts):
    *_, batch = parts
    assert isinstance(batch, Stage2Batch) and all(leaf.shape[0] == 4 for leaf in jax.tree.leaves(batch))


def test_text_share_shows_items_by_their_text_latents(dataset, tables):
    plain, mixed = (sampled(dataset, tables, batch_size=32, text_share=share) for share in (0.0, 0.4))
    rows, items = mixed(0).prompts.items, plain(0).prompts.items
    by_text = rows != items
    np.testing.assert_array_equal(rows - items, by_text * (ITEMS + 1))
    assert 0.25 < by_text.mean() < 0.55  # 32 prompts of 7 items: a standard error of 0.03
    np.testing.assert_array_equal(mixed(0).prompts.items, rows)
    assert (mixed(1).prompts.items > ITEMS).any()


def test_text_share_and_warm_start_train(project, dataset, monkeypatch):
    seen = []
    monkeypatch.setattr(stage2, "warm_start", lambda *args: seen.append(args[3]) or stage2_warm_start(*args))
    export = load_stage2(project.train(dataclasses.replace(SETTINGS, text_share=0.5, warm_start_steps=3)))
    assert seen == [3]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(export.params))
    with pytest.raises(UserError, match="text_share goes with item vectors joint"):
        project.train(dataclasses.replace(SETTINGS, text_share=0.5, item_vectors="text"))
    with pytest.raises(UserError, match="needs user or item vectors"):
        project.train(dataclasses.replace(SETTINGS, warm_start_steps=3, user_vector=False, item_vectors="none"))


def test_mlp_llm_is_stage_2_on_the_cf_models_own_vectors(project, dataset):
    settings = dataclasses.replace(SETTINGS, item_vectors="cf")
    assert settings.kind == "mlp-llm" and all(preset.kind == "mlp-llm" for preset in mlp_llm.PRESETS.values())
    where = dataset, project.arrays, project.path / "llm"
    path = mlp_llm.train_mlp_llm(*where, settings, 0, project.path / "out", quiet=True)
    assert set(load_run(path)["upstream"]) == {"cf", "llm"} and path.parent.name == "mlp-llm"
    export, cf = load_stage2(path), load_cf(project.arrays, dataset)
    np.testing.assert_array_equal(export.latents(None, cf), cf.item_vectors())
    assert export.params["item_in"]["kernel"].shape[0] == USER_DIM
    recommender = export.recommender(dataset.titles, export.latents(None, cf), batch_size=2)
    users = dataset.users_with("test")[:2]
    histories, _ = dataset.history(users, "test", 50)
    vectors = np.load(project.arrays / "users_test.npy")[users]
    assert np.isfinite(recommender.rank(histories, np.tile(np.arange(1, 5), (2, 1)), vectors)).all()
    with pytest.raises(UserError, match="text_share goes with item vectors joint"):
        mlp_llm.train_mlp_llm(*where, dataclasses.replace(settings, text_share=0.5), 0, project.path, quiet=True)


def test_what_cannot_fit_is_refused_before_any_weight(project, dataset):
    """The language model's directory holds no weights, which its hash would ask for."""
    bare = project.path / "bare"
    config = tiny_llm.config(max_position_embeddings=60)
    bare.mkdir()
    (bare / "config.json").write_text(json.dumps(config.to_dict()))
    tiny_llm.tokenizer().save_pretrained(bare)

    def train(**changes):
        settings = dataclasses.replace(SETTINGS, **changes)
        return train_stage2(dataset, project.arrays, project.stage1.path, bare, settings, 0, project.path / "out")

    with pytest.raises(UserError, match=r"a prompt of \d+ tokens is longer than .* 60 positions; cut titles to \d+"):
        train()
    with use_mesh("tensor=4"), pytest.raises(UserError, match=r"the 2 attention heads of .*nearest: --mesh data=2"):
        train()


def test_users_are_known_by_what_they_did_before_the_target_in_its_order(dataset, tables):
    class LastItems(LiveCF):
        """A user is the last two items of the history, in order, and how many there are."""

        def user_vectors(self, users, items, *, key=None):
            count = np.count_nonzero(items, axis=1)
            return np.stack([items[:, -1], items[:, -2], count], axis=1).astype(np.float32)

    sampler = sampled(dataset, tables, cf=LastItems(), batch_size=1, positions="all")
    for index in range(len(sampler)):
        batch = sampler(index)
        (target,) = targets_of(sampler, batch)
        owner = [u for u in range(USERS) if target in dataset.train_sequence(u)[1:]]
        before = []
        for user in owner:
            sequence = dataset.train_sequence(user).tolist()
            history = sequence[: sequence.index(target)]
            before.append((history[-1], history[-2] if len(history) > 1 else 0, len(history)))
        assert tuple(batch.users[0].astype(int).tolist()) in before


def test_the_draws_that_runs_were_made_with(dataset, tables):
    # Recorded: with others a run would be another one at the same identity.
    drawn = sampled(dataset, tables).draw(5, 3)
    assert drawn.users.tolist() == [2, 6, 7]
    assert drawn.candidates.tolist() == [[3, 8, 13, 5], [7, 11, 5, 14], [1, 2, 8, 4]]
    ordered = [sampled(dataset, tables, sort_batches=3, batch_size=2)._sorted(index) for index in range(6)]
    assert [part.users.tolist() for part in ordered] == [[0, 3], [2, 7], [6, 4], [2, 3], [7, 0], [5, 5]]
    by_text = sampled(dataset, tables, text_share=0.5).rows(np.arange(1, 9).reshape(2, 4), 3)
    assert by_text.tolist() == [[16, 2, 3, 4], [5, 6, 22, 8]]


def test_neighbours_in_length_come_together(dataset, tables):
    sampler = sampled(dataset, tables, sort_batches=4, batch_size=2)
    for group in range(3):
        drawn, _ = sampler._group(group)
        lengths = []
        for index in range(4 * group, 4 * group + 4):
            part = sampler._sorted(index)
            shown = np.concatenate([part.histories[:, -3:], part.candidates, part.targets[:, None]], axis=1)
            tokens = [sampler._title_tokens[row].sum() + ITEM_TOKENS * (row[:3] > 0).sum() for row in shown]
            lengths.append(sorted(map(int, tokens)))
        flat = sorted(length for pair in lengths for length in pair)
        assert sorted(lengths) == [flat[place : place + 2] for place in range(0, 8, 2)]
        together = np.concatenate([sampler._sorted(index).users for index in range(4 * group, 4 * group + 4)])
        assert sorted(together.tolist()) == sorted(drawn.users.tolist())
