import json

import pytest

from allmrec_jax.errors import UserError
from allmrec_jax.outputs import MARK, Output

KIND = Output("data set", signs=("manifest.json", "*.parquet"), names=("manifest.json", "*.parquet"), grows=("more/*",))


def fill(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)


def contents(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_an_absent_or_empty_folder_is_taken_and_marked(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("absent", "empty"):
        with KIND.replacing(tmp_path / name) as folder:
            fill(folder, manifest_json="new")
        assert contents(tmp_path / name) == [MARK, "manifest.json"]
        mark = json.loads((tmp_path / name / MARK).read_text())
        assert mark["made_by"] == "data set" and set(mark["files"]) == {"manifest.json"}


@pytest.mark.parametrize("way", ["claim", "check", "replacing"])
@pytest.mark.parametrize("mark", [None, "report"])
def test_a_folder_of_others_is_refused_and_left_alone(tmp_path, way, mark):
    fill(tmp_path / "mine", thesis_tex="precious", manifest_json="looks like ours, but only in part")
    if mark:
        (tmp_path / "mine" / MARK).write_text(json.dumps({"made_by": mark}))
    before = contents(tmp_path / "mine")
    expected = f"is a {mark} and no data set" if mark else "is not empty and is no data set of allmrec; choose another"
    with pytest.raises(UserError, match=expected):
        if way == "replacing":
            with KIND.replacing(tmp_path / "mine"):
                raise AssertionError("must be refused before anything is made")
        getattr(KIND, way)(tmp_path / "mine")
    assert contents(tmp_path / "mine") == before
    assert contents(tmp_path) == [f"mine/{name}" for name in before]


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(UserError, match="file: a file is there; choose another place for the data set"):
        KIND.claim(tmp_path / "file")


def test_one_of_the_kind_is_replaced_as_a_whole_whether_marked_or_made_before_marks(tmp_path):
    fill(tmp_path / "data", manifest_json="before marks", items_parquet="")
    fill(tmp_path / "data" / "more", added="later")
    for text in ("first", "second"):
        with KIND.replacing(tmp_path / "data") as folder:
            fill(folder, manifest_json=text)
        assert contents(tmp_path / "data") == [MARK, "manifest.json"]
        assert (tmp_path / "data" / "manifest.json").read_text() == text
    assert contents(tmp_path) == [f"data/{MARK}", "data/manifest.json"]


@pytest.mark.parametrize("marked", [False, True])
def test_what_others_put_into_ours_is_carried_over(tmp_path, marked):
    if marked:
        with KIND.replacing(tmp_path / "data") as folder:
            fill(folder, manifest_json="", items_parquet="", old_parquet="")
    else:
        fill(tmp_path / "data", manifest_json="", items_parquet="", old_parquet="")
    fill(tmp_path / "data" / "my", notes_txt="precious")
    with KIND.replacing(tmp_path / "data") as folder:
        fill(folder, manifest_json="new")
        fill(tmp_path / "data", late_txt="added while the new was made")
    assert contents(tmp_path / "data") == [MARK, "late.txt", "manifest.json", "my/notes.txt"]
    assert (tmp_path / "data" / "my" / "notes.txt").read_text() == "precious"


def test_what_others_put_where_something_new_belongs_is_not_lost(tmp_path):
    with KIND.replacing(tmp_path / "data") as folder:
        fill(folder, manifest_json="old")
    fill(tmp_path / "data", users_parquet="precious")
    with (
        pytest.raises(UserError, match=r"users\.parquet: is there already and was not written by this command"),
        KIND.replacing(tmp_path / "data") as folder,
    ):
        fill(folder, manifest_json="new", users_parquet="new")
    assert (tmp_path / "data" / "users.parquet").read_text() == "precious"
    assert (tmp_path / "data" / "manifest.json").read_text() == "old"


def test_a_folder_that_is_written_file_by_file_stays_ours(tmp_path):
    KIND.claim(tmp_path / "out")
    (tmp_path / "out" / "anything").write_text("")
    KIND.claim(tmp_path / "out")
    with pytest.raises(UserError, match="is a data set and no report"):
        Output("report", signs=()).claim(tmp_path / "out")


def test_a_lock_and_what_a_kill_left_are_not_somebodys_files(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".lock").write_text("")
    (tmp_path / "out" / ".report.abcdefgh.tmp").mkdir()
    (tmp_path / "out" / ".report.abcdefgh.tmp" / "half").write_text("")
    KIND.claim(tmp_path / "out")


def test_what_a_kill_left_of_a_mark_goes(tmp_path):
    for number, claim in enumerate((KIND.claim, lambda path: KIND.claim_file(path, path / "ours"))):
        claim(tmp_path)
        holder = tmp_path / f".{MARK}.abcdefg{number}.tmp"  # the mark was in its place already
        holder.mkdir()
        (holder / "lock").touch()
        claim(tmp_path)
        assert contents(tmp_path) == [MARK]


def test_files_among_those_of_others(tmp_path):
    (tmp_path / "theirs.txt").write_text("precious")
    for _ in range(2):
        KIND.claim_file(tmp_path, tmp_path / "sub" / "ours.txt")
        (tmp_path / "sub").mkdir(exist_ok=True)
        (tmp_path / "sub" / "ours.txt").write_text("")
    with pytest.raises(UserError, match=r"theirs\.txt: is there already and was not written by this command"):
        KIND.claim_file(tmp_path, tmp_path / "theirs.txt")


def test_a_flipped_bit_is_found(tmp_path):
    with KIND.replacing(tmp_path / "data") as folder:
        fill(folder, manifest_json="{}", items_parquet="abc")
    KIND.verify(tmp_path / "data", "make it again")
    (tmp_path / "data" / "items.parquet").write_text("abb")
    KIND.verify(tmp_path / "data", "make it again", ("manifest.json",))
    with pytest.raises(UserError, match=r"items\.parquet: damaged .*; make it again"):
        KIND.verify(tmp_path / "data", "make it again")
    (tmp_path / "data" / MARK).unlink()
    KIND.verify(tmp_path / "data", "make it again")


@pytest.mark.parametrize("mark", ["[]", "{", '{"made_by": 3}', "[" * 100_000, '{"made_by": "data set", "files": 1}'])
def test_a_damaged_mark_is_one_line(tmp_path, mark):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / MARK).write_text(mark)
    (tmp_path / "data" / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match=r"\.allmrec: .*it says what made this folder"):
        KIND.claim(tmp_path / "data")
