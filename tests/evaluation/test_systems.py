import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny_llm

from allmrec_jax import cli
from allmrec_jax.baselines.tallrec import TallrecSettings
from allmrec_jax.data.candidates import load_candidates
from allmrec_jax.data.dataset import write_dataset
from allmrec_jax.errors import UserError
from allmrec_jax.evaluation import answers, systems
from allmrec_jax.evaluation.ask import ask, cf_scores, derangement, user_vectors
from allmrec_jax.evaluation.questions import Questions
from allmrec_jax.evaluation.results import read_users, summarize
from allmrec_jax.evaluation.systems import (
    SYSTEMS,
    asked_by_evaluations,
    choose_systems,
    compared_pairs,
    system_identity,
    system_label,
)
from allmrec_jax.inference.decode import DecodeSettings
from allmrec_jax.models.cf.gru4rec import GRU4Rec, GRU4RecConfig
from allmrec_jax.models.cf.protocol import load_cf
from allmrec_jax.models.cf.registry import CF_PRESETS
from allmrec_jax.models.cf.sasrec import SASRec, SASRecCF, SASRecConfig
from allmrec_jax.models.llm.lora import init_adapter
from allmrec_jax.models.projectors import init_params
from allmrec_jax.pretrained.llm import llm_hash, save_checkpoint
from allmrec_jax.pretrained.peft import LoRA, save_adapter
from allmrec_jax.runs import Run, load_run, save_arrays
from allmrec_jax.settings import hashed_fields
from allmrec_jax.trained.sources import EvaluationSettings, Sources
from allmrec_jax.training.stage2_settings import Stage2Settings

ITEMS, USERS, USER_DIM, ITEM_DIM, HIDDEN = 44, 30, 5, 6, 16
SETTINGS = Stage2Settings(history_length=3, dtype="float32", title_max_tokens=8)
DECODE = DecodeSettings(max_new_tokens=6)
ALLOWED = [name for name in asked_by_evaluations() if SYSTEMS[name].needs in (None, "arrays", "llm", "stage2")]


def make_data(path, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 9, USERS)
    words = ("Red", "Moon", "Fox", "It", "Ghost Ship", "Deep", "Blue Whale of the Deep", "Saddle", "Spur", "Ship", "Is")
    return write_dataset(
        path,
        name="Tiny",
        items=np.concatenate([rng.permutation(np.arange(1, ITEMS + 1))[:length] for length in lengths]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        titles=[f"{word} {number}" for number in range(4) for word in words],
        descriptions=[""] * ITEMS,
    )


class FakeStage1:
    """Stage 1's export as far as evaluation reads it."""

    def item_latents(self, mode="joint"):
        rng = np.random.default_rng({"joint": 0, "text": 1}[mode])
        return rng.uniform(size=(ITEMS + 1, ITEM_DIM)).astype(np.float32)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data") / "Tiny")


@pytest.fixture(scope="module")
def project(dataset, tmp_path_factory):
    """One's own CF arrays, a language model, and finished runs of stages 1 and 2 whose weights are random."""
    root = tmp_path_factory.mktemp("project")
    rng = np.random.default_rng(0)
    arrays = root / "arrays"
    arrays.mkdir()
    np.save(arrays / "items.npy", rng.standard_normal((ITEMS + 1, USER_DIM)).astype(np.float32))
    for cut in ("train", "valid", "test"):
        np.save(arrays / f"users_{cut}.npy", rng.standard_normal((USERS, USER_DIM)).astype(np.float32))
    llm, params = tiny_llm.model(word_embed_proj_dim=HIDDEN)
    save_checkpoint(root / "llm", llm.config, params, tiny_llm.tokenizer())
    cf = load_cf(arrays, dataset).identity
    stage1 = Run.open(root / "out", dataset.name, "stage1", SETTINGS, 0, dataset.hash, {"cf": cf})
    stage1.finish({})
    upstream = {"cf": cf, "stage1": stage1.identity, "llm": llm_hash(root / "llm")}
    stage2 = Run.open(root / "out", dataset.name, "stage2", SETTINGS, 0, dataset.hash, upstream)
    save_arrays(stage2.export_path("params.safetensors"), init_params(HIDDEN, USER_DIM, ITEM_DIM, jax.random.key(2)))
    card = {"llm": str(root / "llm"), "cf": str(arrays), "stage1": str(stage1.path)}
    stage2.export_path("stage2.json").write_text(json.dumps(card))
    stage2.finish({})
    return {"root": root, "arrays": arrays, "stage1": stage1.path, "stage2": stage2.path, "llm": root / "llm"}


@pytest.fixture(autouse=True)
def fake_stage1(monkeypatch):
    monkeypatch.setattr("allmrec_jax.training.stage1_export.load_stage1", lambda path: FakeStage1())


@pytest.fixture(scope="module")
def questions(dataset):
    return Questions(dataset, load_candidates(dataset))


def test_llm_only_asks_in_a_chat_where_it_is_told_to(dataset, project):
    sources = make_sources(dataset, project, chat=True)
    with pytest.raises(UserError, match="llm: the tokenizer has no chat template; leave chat off"):
        sources.text_recommender  # noqa: B018 - it is made when it is asked for
    made = sources.recommender.tables.tokenizer
    made.chat_template = "[{{ messages[0].content }}][answer] "
    tables = sources.text_recommender.tables
    assert made.decode(tables.chat.after) == "][answer] "
    assert sources.recommender.tables.chat is None
    assert "chat" not in hashed_fields(EvaluationSettings()) and hashed_fields(sources.settings)["chat"]


def make_sources(dataset, project, **settings):
    settings = EvaluationSettings(**{"batch_size": 8, "decode": DECODE, **settings})
    return Sources(dataset, [project["stage2"], project["arrays"]], settings)


@pytest.fixture(scope="module")
def live_cf():
    config = SASRecConfig(num_items=ITEMS, dim=8, blocks=1, heads=1, max_length=5, dropout=0.0)
    return SASRecCF(config, SASRec(config).init_params(jax.random.key(0)), "live")


def test_cf_answers_stay_with_their_users(questions, live_cf, monkeypatch):
    """Batches by history length, filled up with repeats, against one user at a time."""
    monkeypatch.setattr("allmrec_jax.data.buckets.EVALUATION_ROWS", 4)
    vectors, (scores, ranks) = user_vectors(live_cf, questions), cf_scores(live_cf, questions)
    assert vectors.shape == (USERS, 8)
    for row, (user, shown) in enumerate(zip(questions.candidates.users, questions.candidates.candidates, strict=True)):
        sequence = questions.dataset.sequence(user)[:-1]
        alone = live_cf.user_vectors(None, sequence[None])
        # another batch size, and padding that attention sums up another way
        np.testing.assert_allclose(vectors[row], alone[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(scores[row], live_cf.item_vectors()[shown] @ vectors[row], rtol=1e-4, atol=1e-5)
        everything, target = live_cf.item_vectors() @ vectors[row], questions.dataset.sequence(user)[-1]
        others = np.setdiff1d(np.arange(1, ITEMS + 1), [*sequence, target])
        assert ranks[row] == 1 + np.sum(everything[others] >= everything[target])


def test_arrays_answer_for_the_test_cut(dataset, project, questions):
    users = np.load(project["arrays"] / "users_test.npy")[questions.candidates.users]
    np.testing.assert_array_equal(user_vectors(load_cf(project["arrays"], dataset), questions), users)


def random_cf_run(dataset, out, model, network, seed):
    """A finished CF run with random parameters."""
    settings = dataclasses.replace(CF_PRESETS[model]["small"], dim=8)
    run = Run.open(out, dataset.name, "cf", settings, seed, dataset.hash, {})
    save_arrays(run.export_path("params.safetensors"), network.init_params(jax.random.key(seed)))
    card = {"model": model, "config": dataclasses.asdict(network.config)}
    run.export_path("cf.json").write_text(json.dumps(card))
    run.finish({})
    return run.path


def test_each_cf_model_answers_from_its_own_run(dataset, questions, tmp_path):
    sasrec = SASRec(SASRecConfig(ITEMS, dim=8, blocks=1, max_length=5))
    gru = GRU4Rec(GRU4RecConfig(ITEMS, dim=8, hidden=6, max_length=5))
    paths = [
        random_cf_run(dataset, tmp_path, "gru4rec", gru, 1),
        random_cf_run(dataset, tmp_path, "sasrec", sasrec, 1),
    ]
    sources = Sources(dataset, paths, EvaluationSettings())
    assert choose_systems(sources) == ["Popularity", "GRU4Rec", "SASRec"]
    for name, path in zip(("GRU4Rec", "SASRec"), paths, strict=True):
        outcome = SYSTEMS[name].answer(sources, questions, name, None)
        scores, ranks = cf_scores(load_cf(path, dataset), questions)
        np.testing.assert_array_equal(outcome.scores, scores)
        np.testing.assert_array_equal(outcome.catalogue_ranks, ranks)
        assert system_identity(sources, SYSTEMS[name]) == load_run(path)["identity"]
    with pytest.raises(UserError, match="name one with --runs"):
        _ = sources.cf
    again = random_cf_run(dataset, tmp_path, "sasrec", sasrec, 2)
    with pytest.raises(UserError, match="both sasrec cf"):
        Sources(dataset, [*paths, again], EvaluationSettings())


def test_a_run_built_on_one_of_several_cf_runs_finds_it(dataset, tmp_path):
    gru = GRU4Rec(GRU4RecConfig(ITEMS, dim=8, hidden=6, max_length=5))
    sasrec = SASRec(SASRecConfig(ITEMS, dim=8, blocks=1, max_length=5))
    mine = random_cf_run(dataset, tmp_path, "gru4rec", gru, 1)
    other = random_cf_run(dataset, tmp_path / "elsewhere", "sasrec", sasrec, 1)
    stage1 = Run.open(tmp_path, dataset.name, "stage1", SETTINGS, 0, dataset.hash, {"cf": load_run(mine)["identity"]})
    stage1.finish({})
    for given in ([stage1.path], [stage1.path, other], [other, mine, stage1.path]):
        sources = Sources(dataset, given, EvaluationSettings())
        assert sources.cf.identity == load_run(mine)["identity"]


def test_language_model_answers_stay_with_their_users(dataset, project, questions):
    """Users are asked in the order of their prompts' lengths; here against one at a time."""
    sources = make_sources(dataset, project)
    users, told = user_vectors(sources.cf, questions), []
    outcome = ask(sources.recommender, questions, users, "A", generate=True, advance=told.append)
    assert sum(told) == USERS
    alone = dataclasses.replace(sources.recommender, batch_size=1)
    for row in range(0, USERS, 7):
        asked = questions.histories[row : row + 1], questions.candidates.candidates[row : row + 1], users[row : row + 1]
        # other batches and paddings: sums in another order
        np.testing.assert_allclose(outcome.scores[row], alone.rank(*asked)[0], rtol=1e-4, atol=1e-3)
        assert outcome.generated[row] == alone.generate(*asked)[0]
    shown = [[dataset.titles[item] for item in row] for row in questions.candidates.candidates]
    tokens = sources.recommender.tables.titles
    whole = np.diff(tokens.offsets).max() < SETTINGS.title_max_tokens
    assert not whole or outcome.titles == shown


def asked_of(monkeypatch, sources, questions, name):
    """What a system hands to the language model: (recommender, user vectors, whether to generate)."""
    seen = {}

    def record(recommender, questions, users, name, *, generate, advance):
        seen.update(recommender=recommender, users=users, generate=generate)

    monkeypatch.setattr(answers, "ask", record)
    SYSTEMS[name].answer(sources, questions, name, None)
    return seen["recommender"], seen["users"], seen["generate"]


def test_what_each_system_is_given(dataset, project, questions, monkeypatch):
    sources = make_sources(dataset, project)
    own = np.load(project["arrays"] / "users_test.npy")[questions.candidates.users]
    joint, text = (FakeStage1().item_latents(mode) for mode in ("joint", "text"))

    ours, users, generates = asked_of(monkeypatch, sources, questions, "A-LLMRec")
    assert generates
    np.testing.assert_array_equal(users, own)
    np.testing.assert_array_equal(ours.soft.latents, joint)

    sbert, users, generates = asked_of(monkeypatch, sources, questions, "A-LLMRec (SBERT)")
    assert generates
    assert sbert.llm_params is ours.llm_params
    np.testing.assert_array_equal(users, own)
    np.testing.assert_array_equal(sbert.soft.latents, text)

    permuted, users, generates = asked_of(monkeypatch, sources, questions, "A-LLMRec, items permuted")
    assert not generates
    np.testing.assert_array_equal(users, own)
    latents = np.asarray(permuted.soft.latents)
    np.testing.assert_array_equal(latents[0], joint[0])
    assert (latents[1:] != joint[1:]).any(axis=1).all()
    np.testing.assert_array_equal(np.sort(latents, axis=0), np.sort(joint, axis=0))

    swapped, users, generates = asked_of(monkeypatch, sources, questions, "A-LLMRec, users swapped")
    assert not generates
    np.testing.assert_array_equal(swapped.soft.latents, joint)
    assert (users != own).any(axis=1).all()
    np.testing.assert_array_equal(np.sort(users, axis=0), np.sort(own, axis=0))

    alone, users, generates = asked_of(monkeypatch, sources, questions, "LLM-Only")
    assert generates
    assert alone.soft is users is None
    assert alone.llm_params is ours.llm_params


def test_controls_rank_worse_or_better_but_never_the_same(dataset, project, questions):
    sources = make_sources(dataset, project)
    scores = {
        name: SYSTEMS[name].answer(sources, questions, name, lambda count: None).scores
        for name in ("A-LLMRec", "A-LLMRec, items permuted", "A-LLMRec, users swapped", "A-LLMRec (SBERT)", "LLM-Only")
    }
    for name, other in zip(scores, [*scores][1:], strict=False):
        assert (scores[name] != scores[other]).any(axis=1).all(), (name, other)


@pytest.mark.parametrize("count", [2, 3, 50])
def test_derangement_moves_everything(count):
    for seed in range(20):
        moved = derangement(np.random.default_rng(seed), count)
        assert sorted(moved) == list(range(count))
        assert (moved != np.arange(count)).all()


def test_popularity_is_the_training_count(dataset, project, questions):
    outcome = SYSTEMS["Popularity"].answer(make_sources(dataset, project), questions, "Popularity", None)
    np.testing.assert_array_equal(outcome.scores, dataset.train_count[questions.candidates.candidates])


def test_systems_are_all_that_the_sources_allow_or_those_named(dataset, project):
    bare = Sources(dataset, [], EvaluationSettings())
    assert choose_systems(bare) == ["Popularity"]
    assert choose_systems(Sources(dataset, [], EvaluationSettings(llm="x"))) == ["Popularity", "LLM-Only"]
    everything = choose_systems(make_sources(dataset, project))
    assert everything == ALLOWED
    assert choose_systems(bare, ["a-llmrec (sbert)", "SASRec"]) == ["SASRec", "A-LLMRec (SBERT)"]
    with pytest.raises(UserError, match=r"unknown system 'BERT4Rec'.*A-LLMRec"):
        choose_systems(bare, ["BERT4Rec"])


def test_pairs():
    pairs = compared_pairs(["SASRec", "LLM-Only", "A-LLMRec", "A-LLMRec (SBERT)", "A-LLMRec, users swapped"])
    assert ("A-LLMRec", "SASRec") in pairs
    assert ("A-LLMRec (SBERT)", "SASRec") in pairs
    assert ("LLM-Only", "SASRec") in pairs
    assert ("A-LLMRec, users swapped", "A-LLMRec") in pairs
    assert not any("Popularity" in pair or "CF arrays" in pair for pair in pairs)


def test_what_a_system_lacks_is_named(dataset, questions, tmp_path):
    bare = Sources(dataset, [], EvaluationSettings())
    for name, word in [("Oracle", "--oracle"), ("SASRec", "cf run"), ("A-LLMRec", "run"), ("LLM-Only", "--llm")]:
        with pytest.raises(UserError, match=word):
            SYSTEMS[name].answer(bare, questions, name, None)
    with pytest.raises(UserError, match=r"run\.json"):
        Sources(dataset, [tmp_path], EvaluationSettings())


def test_upstream_of_another_kind_is_refused(dataset, project, tmp_path):
    with pytest.raises(UserError, match="both stage2"):
        Sources(dataset, [project["stage2"], project["stage2"]], EvaluationSettings())

    other = Run.open(tmp_path / "out", dataset.name, "cf", SETTINGS, 5, dataset.hash, {})
    other.finish({})
    with pytest.raises(UserError, match=other.identity[:12]):
        Sources(dataset, [project["stage2"], other.path], EvaluationSettings())

    with pytest.raises(UserError, match="Tiny"):
        Sources(make_data(tmp_path / "Tiny", seed=1), [project["stage2"]], EvaluationSettings())


def test_program_writes_what_the_contract_says(dataset, project, tmp_path, capsys):
    runs = [argument for path in (project["stage2"], project["arrays"]) for argument in ("--runs", str(path))]
    options = ["--preset", "small", "--max-new-tokens", "6", "--max-users", "20", "--seed", "3"]
    cli.main(["eval", "overall", "--data", str(dataset.path), *runs, *options, "--out", str(tmp_path / "out")])
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "out")

    results = json.loads((tmp_path / "out" / "results.json").read_text())
    names = ALLOWED
    assert list(results["systems"]) == names
    candidates = load_candidates(dataset, seed=3, max_users=20)
    assert {run["candidates_sha"] for run in results["runs"]} == {candidates.sha256}
    assert [run["system"] for run in results["runs"]] == names
    assert all(run["id"] and run["seed"] == 3 and run["scenario"] == "overall" for run in results["runs"])
    assert set(results["times"]["systems"]) == set(names)
    size = {"users": dataset.num_users, "items": dataset.num_items}
    assert results["data"] == {"name": "Tiny", "hash": dataset.hash, **size, "generated": False}
    assert results["machine"]["processor"] and results["machine"]["cores"] >= 1
    assert results["settings"]["history_length"] == 3
    assert results["settings"]["prompt_style"] == "neutral"
    assert "jax" in results["versions"]
    assert "A-LLMRec - CF arrays" in results["paired"]
    assert "A-LLMRec, items permuted - A-LLMRec" in results["paired"]
    assert "valid_ratio" in results["systems"]["A-LLMRec"]["all"]
    assert "valid_ratio" not in results["systems"]["A-LLMRec, users swapped"]["all"]
    assert "catalogue_recall@20" in results["systems"]["CF arrays"]["all"]
    assert "catalogue_recall@20" not in results["systems"]["A-LLMRec"]["all"]
    users = read_users(tmp_path / "out")
    assert len(users) == 20 * len(names)
    pairs = [tuple(pair.split(" - ")) for pair in results["paired"] if ", generated" not in pair]
    assert {("A-LLMRec", "CF arrays"), *compared_pairs(names)} <= set(pairs)
    assert summarize(users, pairs) == (results["systems"], results["paired"])


def test_program_with_nothing_but_a_language_model(dataset, project, tmp_path):
    arguments = ["--llm", str(project["llm"]), "--systems", "llm-only", "--no-generate", "--out", str(tmp_path / "out")]
    with jax.numpy_dtype_promotion("standard"):  # Flax's own norms promote where the paper's bfloat16 is computed in
        cli.main(["eval", "overall", "--data", str(dataset.path), *arguments, "--max-users", "5"])
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results["systems"]) == ["LLM-Only"]
    assert results["runs"][0]["id"] == llm_hash(project["llm"])
    assert "valid_ratio" not in results["systems"]["LLM-Only"]["all"]


def test_a_users_mistake_is_one_line(dataset, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["eval", "overall", "--data", str(dataset.path), "--systems", "nothing", "--out", str(tmp_path / "o")])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: nothing: no such directory, and no run")
    assert error.count("\n") == 1
    assert not (tmp_path / "o").exists()


@pytest.fixture(scope="module")
def trained(dataset, project):
    """Finished runs of TALLRec, by both protocols, and of MLP-LLM, with random weights."""
    root, runs = project["root"], {}
    llm, _ = tiny_llm.model(word_embed_proj_dim=HIDDEN)
    upstream = {"llm": llm_hash(root / "llm")}
    for protocol in ("yes-no", "titles"):
        settings = TallrecSettings(protocol=protocol, history_length=3, dtype="float32", title_max_tokens=8)
        run = Run.open(root / "out", dataset.name, settings.kind, settings, 0, dataset.hash, upstream)
        adapter = jax.tree.map(lambda x: x + 0.1, init_adapter(llm.config, settings.rank, jax.random.key(3)))
        lora = LoRA(adapter, settings.alpha)
        save_adapter(run.export_path("adapter"), llm.config, lora, dropout=0.0, base_model="")
        run.export_path("tallrec.json").write_text(json.dumps({"llm": str(root / "llm")}))
        run.finish({})
        runs[settings.kind] = run.path
    settings = dataclasses.replace(SETTINGS, item_vectors="cf")
    upstream["cf"] = load_cf(project["arrays"], dataset).identity
    run = Run.open(root / "out", dataset.name, settings.kind, settings, 0, dataset.hash, upstream)
    save_arrays(run.export_path("params.safetensors"), init_params(HIDDEN, USER_DIM, USER_DIM, jax.random.key(4)))
    run.export_path("stage2.json").write_text(json.dumps({"llm": str(root / "llm")}))
    run.finish({})
    return {**runs, "mlp-llm": run.path}


def test_tallrec_and_mlp_llm_answer_from_their_runs(dataset, project, trained, questions):
    sources = Sources(dataset, [*trained.values(), project["arrays"]], EvaluationSettings(batch_size=8, decode=DECODE))
    names = [name for name in SYSTEMS if SYSTEMS[name].needs in trained]
    assert names == ["TALLRec (yes-no)", "TALLRec (titles)", "MLP-LLM"]
    assert set(names) < set(choose_systems(sources))
    few = Questions(dataset, questions.candidates.head(8))
    told = {name: SYSTEMS[name].answer(sources, few, name, lambda count: None) for name in names}
    assert told["TALLRec (yes-no)"].generated is None
    for name in names:
        assert np.isfinite(told[name].scores).all() and (told[name].scores.std(axis=1) > 0).all()
        assert system_identity(sources, SYSTEMS[name]) == load_run(trained[SYSTEMS[name].needs])["identity"]
        if name != "TALLRec (yes-no)":
            assert len(told[name].generated) == 8
    # The adapter is merged, and the CF model's own vectors stand behind the titles.
    merged, plain = sources.tallrec("tallrec-titles").llm_params, sources.mlp_llm.llm_params
    changed = [
        name
        for name in plain["layers"]
        if "kernel" in plain["layers"][name]
        and (merged["layers"][name]["kernel"] != plain["layers"][name]["kernel"]).any()
    ]
    assert sorted(changed) == ["q_proj", "v_proj"]
    np.testing.assert_array_equal(sources.mlp_llm.soft.latents, sources.cf.item_vectors())


@pytest.mark.parametrize(
    ("positions", "backbone", "expected"),
    [
        (("last", "last"), None, "A-LLMRec (SBERT)"),
        (("last", "all"), None, "A-LLMRec (SBERT)"),
        (("all", "all"), None, "A-LLMRec_all (SBERT)"),
        (("last", "last"), "gru4rec", "A-LLMRec (GRU4Rec) (SBERT)"),
    ],
)
def test_variants_of_a_llmrec_are_called_by_their_names(dataset, project, monkeypatch, positions, backbone, expected):
    sources = make_sources(dataset, project)
    told = dict(zip((sources.runs["stage1"], sources.runs["stage2"]), positions, strict=True))
    cf = {"kind": "cf", "settings": {"model": backbone}}
    sources.backbone = None if backbone is None else project["root"]
    monkeypatch.setattr(
        systems, "load_run", lambda path: {"settings": {"positions": told[path]}} if path in told else cf
    )
    assert system_label(sources, "A-LLMRec (SBERT)") == expected
    assert system_label(sources, "LLM-Only") == "LLM-Only"
