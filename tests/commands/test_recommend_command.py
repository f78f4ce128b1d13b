"""`allmrec recommend` on a real, tiny A-LLMRec: every stage trained for a step or two."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import polars as pl
import pytest
import tiny_llm

import allmrec_jax as ar
from allmrec_jax import cli
from allmrec_jax.data.dataset import Dataset, write_dataset
from allmrec_jax.embedded.sbert_nano import SbertNanoSettings, new_encoder
from allmrec_jax.errors import UserError
from allmrec_jax.pretrained.llm import save_checkpoint
from allmrec_jax.pretrained.sentence_encoder import save_sentence_encoder
from allmrec_jax.trained.recommend import NewItem, load_recommender
from allmrec_jax.training.stage1_export import load_stage1

ITEMS, USERS = 45, 24
NEVER = ITEMS
"""An item that is nobody's training item."""


@dataclass
class Trained:
    dataset: Dataset
    stage1: Path
    stage2: Path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("recommend")
    rng = np.random.default_rng(0)
    sequences = [rng.choice(np.arange(1, NEVER), 6, replace=False) for _ in range(USERS)]
    sequences[0][-1] = NEVER
    words = ("Red", "Moon", "Fox", "It", "Ghost Ship", "Saddle", "Spur", "Ship", "Deep")
    dataset = write_dataset(
        root / "data",
        name="Tiny",
        items=np.concatenate(sequences),
        offsets=np.arange(USERS + 1) * 6,
        titles=[f"{word} {number}" for number in range(5) for word in words],
        descriptions=["of the galaxy"] * ITEMS,
        users_raw=[f"U{number:02d}" for number in range(USERS)],
        items_raw=[f"B{item:02d}" for item in range(1, ITEMS + 1)],
    )
    encoder = SbertNanoSettings(vocabulary=1000, hidden_size=16, layers=1, heads=2, max_length=32)
    save_sentence_encoder(root / "sbert", new_encoder(encoder, 0))
    llm, params = tiny_llm.model()
    save_checkpoint(root / "llm", llm.config, params, tiny_llm.tokenizer())
    out = root / "out"
    # Adam's bias correction in optax raises a float to an integer count, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard"):
        stage2 = ar.fit(
            dataset.path,
            preset="paper",
            sentence_encoder=str(root / "sbert"),
            llm=str(root / "llm"),
            checkpoints=out,
            name="tiny",
            quiet=True,
            settings={
                "cf": {"dim": 8, "blocks": 1, "epochs": 1, "buckets": 1, "choose": "last", "evaluate_every": 1},
                "stage1": {
                    "epochs": 1, "batch_size": USERS, "latent_dim": 12, "validation_users": 4, "text_max_tokens": 16
                },
                "stage2": {
                    "steps": 1, "batch_size": 4, "title_max_tokens": 8, "dtype": "float32", "choose": "last"
                },
            },
        )  # fmt: skip
    (stage1,) = ar.list_runs(out, kind="stage1")
    return Trained(dataset, stage1.path, stage2.path)


@pytest.fixture
def recommend(trained: Trained, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str, int]]:
    """Runs the command and gives what it printed, its errors and its exit code."""

    def call(*arguments: str | Path) -> tuple[str, str, int]:
        line = ["recommend", "--data", trained.dataset.path, "--run", trained.stage2, *arguments]
        code = 0
        try:
            cli.main([str(argument) for argument in line])
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        told = capsys.readouterr()
        return told.out, told.err, code

    return call


def test_known_user(trained: Trained, recommend: Callable):
    out, err, code = recommend("--user", "U03", "--json", "--count", "5")
    assert code == 0, err
    rows = json.loads(out)
    assert [row["rank"] for row in rows] == [1, 2, 3, 4, 5]
    seen = {trained.dataset.items_raw[item] for item in trained.dataset.sequence(3)}
    assert not seen & {row["id"] for row in rows}
    assert {row["id"] for row in rows} <= set(trained.dataset.items_raw)


def test_the_same_history_by_id_and_title_gives_what_the_user_gets(trained: Trained, recommend: Callable):
    user, _, _ = recommend("--user", "U03", "--json")
    items = trained.dataset.sequence(3)
    names = [trained.dataset.items_raw[item] if item % 2 else trained.dataset.titles[item].upper() for item in items]
    history, err, code = recommend(*[part for name in names for part in ("--item", name)], "--json")
    assert code == 0, err
    assert json.loads(history) == json.loads(user)


def test_new_items_take_part(recommend: Callable, tmp_path: Path):
    path = tmp_path / "new.jsonl"
    path.write_text('{"id": "new-1", "title": "[CandidateEmb] \\"Orbit\\"", "description": "of the galaxy"}\n')
    out, err, code = recommend("--user", "U00", "--items", path, "--json", "--count", "45", "--retrieve", "45")
    assert code == 0, err
    row = next(row for row in json.loads(out) if row["new"])
    assert (row["id"], row["title"]) == ("new-1", '[CandidateEmb] "Orbit"')
    out, err, code = recommend("--item", '[candidateemb] "orbit"', "--items", path)
    assert code == 0, err
    assert 'After [CandidateEmb] "Orbit"' in out


def test_vectors_of_new_and_untrained_items(trained: Trained):
    often = int(trained.dataset.train_count.argmax())
    title = trained.dataset.titles[often]
    recommender = load_recommender(trained.dataset, trained.stage2, [NewItem("new-1", title, "of the galaxy")])
    stage1 = load_stage1(trained.stage1)
    assert not trained.dataset.train_count[NEVER]
    own = np.flatnonzero(trained.dataset.train_count)
    assert recommender.stand_in[own].tolist() == own.tolist()
    # The new item has item `often`'s very text, and the never trained one is near some trained item or other.
    assert recommender.stand_in[ITEMS + 1] == often
    assert recommender.stand_in[NEVER] in own
    assert recommender.llm.soft is not None
    latents = np.asarray(recommender.llm.soft.latents)
    # The same text in another batch shape: equal but for rounding.
    np.testing.assert_allclose(latents[-1], stage1.text[often], atol=1e-5)
    np.testing.assert_array_equal(latents[NEVER], stage1.text[NEVER])
    np.testing.assert_array_equal(latents[often], stage1.joint[often])


def test_table(recommend: Callable):
    out, err, code = recommend("--user", "U03", "--count", "3")
    assert code == 0, err
    assert "After 1 earlier items, " in out
    assert "probability" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give one of --user, --item"),
        (("--user", "U03", "--item", "B01"), "give one of --user, --item"),
        (("--user", "U3"), "no user 'U3'; nearest: 'U"),
        (("--item", "Ghost Shiq 1"), "no item has the id or title 'Ghost Shiq 1'; nearest: 'Ghost Ship 1'"),
        (("--user", "U03", "--count", "30"), "--count 30 is more than --retrieve 20"),
        (("--user", "U03", "--items", "absent.jsonl"), "absent.jsonl: cannot be read"),
    ],
)
def test_bad_input_is_one_line(recommend: Callable, arguments: tuple[str, ...], message: str):
    out, err, code = recommend(*arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert out == ""


def test_another_data_set_is_refused(trained: Trained, recommend: Callable, tmp_path: Path):
    other = write_dataset(
        tmp_path / "data",
        name="Other",
        items=np.arange(1, 7, dtype=np.int32),
        offsets=np.array([0, 6]),
        titles=list("abcdef"),
        descriptions=[""] * 6,
    )
    _, err, code = recommend("--user", "0", "--data", other.path)
    assert code == 2
    assert "was trained on data set Tiny" in err


def test_a_run_is_called_by_its_name_and_knows_its_data(trained: Trained, capsys: pytest.CaptureFixture[str]):
    root = str(trained.stage2.parents[2])
    cli.main(["recommend", "--run", "tiny", "--checkpoints", root, "--user", "U03", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert rows == ar.load("tiny", checkpoints=root).recommend(user="U03").records()  # type: ignore[attr-defined]
    assert ar.load(trained.stage2).load_data().hash == trained.dataset.hash


@pytest.mark.parametrize("form", ["users.txt", "users.csv", "users.parquet:who"])
def test_many_users_get_what_each_gets_alone(trained: Trained, recommend: Callable, tmp_path: Path, form: str):
    users, file = ["U03", "U00", "U11"], tmp_path / form.partition(":")[0]
    if file.suffix == ".txt":
        file.write_text("\n".join(["\ufeffU03", "U00", "", "U11 "]), encoding="utf-8")
    elif file.suffix == ".csv":
        pl.DataFrame({"n": [1, 2, 3], "user_id": users}).write_csv(file)
    else:
        pl.DataFrame({"who": users, "n": [1, 2, 3]}).write_parquet(file)
    out, err, code = recommend("--users", tmp_path / form, "--json", "--count", "4")
    assert code == 0, err
    rows = json.loads(out)
    assert [row["user"] for row in rows] == [user for user in users for _ in range(4)]
    for user in users:
        alone = json.loads(recommend("--user", user, "--json", "--count", "4")[0])
        mine = [row for row in rows if row["user"] == user]
        assert [row["id"] for row in mine] == [row["id"] for row in alone]
        for one, other in zip(mine, alone, strict=True):  # another batch shape: equal but for rounding
            assert one["log_likelihood"] == pytest.approx(other["log_likelihood"], abs=2e-3)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_lists_of_all_users_go_into_a_file(trained: Trained, recommend: Callable, tmp_path: Path, suffix: str):
    path = tmp_path / f"lists{suffix}"
    out, err, code = recommend("--all", "--count", "2", "--out", path)
    assert code == 0 and out == f"{path}\n", err
    readers: dict[str, Callable] = {".csv": pl.read_csv, ".jsonl": pl.read_ndjson, ".parquet": pl.read_parquet}
    frame = readers[suffix](path)
    assert frame.height == 2 * USERS and frame["user"].n_unique() == USERS
    assert frame.columns[:4] == ["user", "rank", "id", "title"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--users", "absent.txt"), "absent.txt: cannot be read"),
        (("--all", "--out", "lists.xlsx"), "lists.xlsx: the name should end in .csv, .jsonl or .parquet"),
        (("--user", "U03", "--stage1", "nothing"), "nothing: no such directory, and no stage1 of data set Tiny"),
    ],
)
def test_bad_lists_are_one_line(recommend: Callable, arguments: tuple[str, ...], message: str):
    out, err, code = recommend(*arguments)
    assert code == 2 and message in err and err.count("\n") == 1 and out == ""


def test_a_column_that_holds_no_ids_is_one_line(tmp_path: Path):
    from allmrec_jax.api.recommending import read_users

    pl.DataFrame({"user_id": [["a"], ["b"]]}).write_parquet(tmp_path / "users.parquet")
    with pytest.raises(UserError, match=r"users\.parquet: column 'user_id' holds no ids"):
        read_users(tmp_path / "users.parquet")
    (tmp_path / "users.parquet").write_bytes(b"PAR1" + bytes(40) + b"PAR1")
    with pytest.raises(UserError, match=r"users\.parquet: cannot be read"):
        read_users(tmp_path / "users.parquet")


def test_fit_again_trains_nothing(trained: Trained):
    before = {run.path: (run.path / "DONE").stat().st_mtime_ns for run in ar.list_runs(trained.stage2.parents[2])}
    assert len(before) == 3
    one, cf = ar.load(trained.stage2), ar.list_runs(trained.stage2.parents[2], kind="cf")[0]
    found = ar.train_cf(trained.dataset, preset="paper", checkpoints=trained.stage2.parents[2], **{
        name: value for name, value in cf.settings.items() if name != "model"
    })  # fmt: skip
    assert found.path == cf.path and one.upstream["cf"] == found.identity
    assert {path: (path / "DONE").stat().st_mtime_ns for path in before} == before


def test_systems_are_measured_by_handle_and_by_name(trained: Trained, tmp_path: Path):
    root = trained.stage2.parents[2]
    cf, system = ar.list_runs(root, kind="cf")[0], ar.load(trained.stage2)
    results = ar.evaluate(trained.dataset, [cf, system, "LLM-Only"], users=5, generate=False, out=tmp_path / "out")
    assert [row["system"] for row in results.records()] == ["SASRec", "LLM-Only", "A-LLMRec"]
    assert all(row["users"] == 5 for row in results.records())
    assert results.path is not None and (results.path / "results.json").is_file()
    assert json.loads((results.path / "results.json").read_text())["systems"] == results.results["systems"]
    assert "A-LLMRec" in results._repr_html_()
    with pytest.raises(ar.UserError, match="no system is made of a stage1 run alone"):
        ar.evaluate(trained.dataset, [trained.stage1])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"llm": "nowhere"}, "nowhere"),
        ({"settings": {"stage2": {"step": 3}}}, "did you mean 'steps'"),
        ({"settings": {"stge2": {}}}, "did you mean 'stage2'"),
    ],
)
def test_what_stage_2_lacks_is_told_before_anything_is_trained(
    trained: Trained, tmp_path: Path, given: dict, message: str
):
    with pytest.raises(ar.UserError, match=message):
        ar.fit(trained.dataset, checkpoints=tmp_path, **given)
    assert not list(tmp_path.iterdir())


def test_a_preset_whose_model_is_not_here_names_one_that_is(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    with pytest.raises(ar.UserError, match="--preset small takes sbert-nano, which is here"):
        ar.fit(trained.dataset, checkpoints=tmp_path / "out", preset="paper")
