import os
import signal
import subprocess
import sys

import click
import pytest

from allmrec_jax import cli
from allmrec_jax.commands.convert import command as convert
from allmrec_jax.commands.runs import command as runs
from allmrec_jax.commands.train import command as train
from allmrec_jax.errors import StoppedError, UserError

GROUPS: dict[tuple[str, ...], click.Group] = {
    (): cli.allmrec,
    ("train",): train,
    ("runs",): runs,
    ("convert",): convert,
    ("eval",): cli.evaluate,
    ("experiment",): cli.experiment,
}
PROGRAMS = [
    pytest.param((*path, name), group, id=" ".join((*path, name)))
    for path, group in GROUPS.items()
    for name in group.list_commands(click.Context(group))
    if (name,) not in GROUPS
]


def run(capsys, *arguments):
    """Exit code, standard output and standard error of one command line."""
    code = 0
    try:
        cli.main(list(arguments))
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def test_help_imports_nothing_heavy():
    script = (
        "import sys; from allmrec_jax import cli; cli.main(['--help']); cli.main(['train', '--help']);"
        "heavy = {'jax', 'numpy', 'torch', 'polars', 'matplotlib', 'transformers'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "allmrec fit --data data/ml" in done.stdout
    assert "train what is missing, then evaluate and report" in done.stdout, "descriptions are not cut short"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a device that is always full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["--version"], ["presets", "stage2"]])
def test_an_output_that_takes_nothing_is_one_line(words, unbuffered):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "allmrec_jax.cli", *words],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: cannot write to standard output: No space left on device")


@pytest.mark.skipif(sys.platform != "linux", reason="huge pages are asked for on Linux")
@pytest.mark.parametrize("tunables", ["", "glibc.malloc.perturb=7", "glibc.malloc.hugetlb=0"])
def test_a_command_runs_in_huge_pages_unless_told_otherwise(tunables):
    """The same process, for a scheduler or a lock may know it by its number, started at most once more."""
    script = "import os, sys; print(os.getpid(), os.environ['GLIBC_TUNABLES'], flush=True);"
    script += "from allmrec_jax import cli; cli.main()"
    process = subprocess.run(
        [sys.executable, "-c", script, "--version"],
        capture_output=True,
        text=True,
        env={**os.environ, "GLIBC_TUNABLES": tunables},
    )
    *starts, version = process.stdout.splitlines()
    assert version.startswith("allmrec "), process.stderr
    numbers, told = zip(*(start.split(" ") for start in starts), strict=True)
    if tunables == "glibc.malloc.hugetlb=0":
        assert told == (tunables,)
    else:
        assert numbers[0] == numbers[1] and told == (tunables, ":".join(filter(None, (tunables, cli.HUGE_PAGES))))


@pytest.mark.skipif(sys.platform != "linux", reason="huge pages are asked for on Linux")
def test_a_command_goes_on_where_the_interpreter_may_not_be_started_again(monkeypatch):
    def refuse(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "execv", refuse)
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    cli.in_huge_pages()
    assert os.environ["GLIBC_TUNABLES"] == cli.HUGE_PAGES, "it was tried"


@pytest.mark.parametrize(("path", "group"), PROGRAMS)
def test_every_program_has_a_described_example(capsys, monkeypatch, path, group):
    monkeypatch.setenv("COLUMNS", "80")
    command = group.get_command(click.Context(group), path[-1])
    code, shown, _ = run(capsys, *path, "--help")
    assert code == 0
    assert max(map(len, shown.splitlines())) <= 80, "an example is not wrapped: it can be pasted"
    after_usage = shown.partition("\n\n")[2]
    assert f"allmrec {' '.join(path)} " in after_usage.replace("\n", " "), "the help shows no example of the command"
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.name not in ("preset", "seed", "out", "checkpoints"):
            assert parameter.help, f"--{parameter.name} is not described"


def test_a_user_error_is_one_line_and_code_2(capsys, monkeypatch):
    def fail(**_):
        raise UserError("items.npy: damaged\nat byte 3")

    monkeypatch.setitem(cli.allmrec.lazy, "broken", ("broken", ""))
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: type("M", (), {"command": click.command()(fail)}))
    assert run(capsys, "broken") == (2, "", "error: items.npy: damaged at byte 3\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nonsense",), "error: No such command 'nonsense' (see `allmrec --help`)\n"),
        (("recomend",), "error: No such command 'recomend'; did you mean 'recommend'? (see `allmrec --help`)\n"),
        (("train", "stage-1"), "error: No such command 'stage-1'; did you mean 'stage1'? (see `allmrec train --help`)"),
        (("runs", "lsit"), "error: No such command 'lsit'; did you mean 'list'?"),
        (("train", "cf", "--seed", "x"), "error: Invalid value for '--seed': 'x' is not a valid integer"),
        (("train", "cf"), "error: Missing option '--data'."),
    ],
)
def test_bad_usage_is_one_line_and_code_2(capsys, arguments, message):
    code, out, err = run(capsys, *arguments)
    assert code == 2 and out == "" and err.startswith(message) and err.count("\n") == 1


def test_no_arguments_shows_the_help(capsys):
    code, _, err = run(capsys)
    assert code == 2 and "Commands:" in err and err.count("\n") > 10


def test_a_bug_keeps_its_traceback(monkeypatch):
    def fail(**_):
        raise KeyError("bug")

    monkeypatch.setitem(cli.allmrec.lazy, "broken", ("broken", ""))
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: type("M", (), {"command": click.command()(fail)}))
    with pytest.raises(KeyError):
        cli.main(["broken"])


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError("Unable to allocate 9 TiB"), "out of memory (Unable to allocate 9 TiB); lower --batch-size"),
        (ImportError("libjax_common.so: failed to map segment from shared object"), "out of memory (libjax_common.so"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore"), "out of memory (RESOURCE_EXH"),
        (UserError("a title with \x1b]0;owned\x07 and \u202e"), "a title with \\x1b]0;owned\\x07 and \\u202e"),
    ],
)
def test_what_ends_a_command_is_one_line_that_a_terminal_does_not_act_upon(capsys, monkeypatch, error, said):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(cli.allmrec, "main", fail)
    with pytest.raises(SystemExit, match="2"):
        cli.main([])
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {said}") and shown.count("\n") == 1 and "\x1b" not in shown


def test_a_training_told_to_end_has_an_exit_code_of_its_own(capsys, monkeypatch):
    def stop(*_, **__):
        raise StoppedError("saved at step 4")

    monkeypatch.setattr(cli.allmrec, "main", stop)
    with pytest.raises(SystemExit, match="75"):
        cli.main([])
    assert capsys.readouterr().err == "saved at step 4\n"


LONG_STEP = """
import signal, time
from allmrec_jax import cli
cli.GRACE = 0.2
def main(**_):
    print("in it", flush=True)
    signal.signal(signal.SIGINT, lambda *_: None)  # as where Python does not come to run
    time.sleep(30)
cli.allmrec.main = main
cli.in_huge_pages = lambda: None
cli.main()
"""


def test_ctrl_c_ends_a_long_step():
    process = subprocess.Popen(
        [sys.executable, "-c", LONG_STEP],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "in it\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130 and said == "interrupted\n"


LOADING = """
import time
from allmrec_jax import cli
from allmrec_jax.errors import resumable
def main(**_):
    with resumable():
        print("in it", flush=True)
        time.sleep(30)
cli.allmrec.main = main
cli.main([])
"""


def test_a_training_told_to_end_before_its_first_step_has_that_code_too():
    process = subprocess.Popen(
        [sys.executable, "-c", LOADING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "in it\n"
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 75 and said.startswith("asked to end (SIGTERM)") and said.count("\n") == 1


@pytest.mark.parametrize("seed", ["-1", "99999999999999999999", "9" * 5000])
def test_a_seed_out_of_range_is_one_line(capsys, tmp_path, seed):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["synthesize", "--out", str(tmp_path / "raw"), "--seed", seed])
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
