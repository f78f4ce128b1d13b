"""Every `allmrec …` that a page shows is a command that exists, with options and values that it takes.

So is every `python benchmarks/….py` of a page or of a program's own docstring, as far as its options.
"""

import ast
import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from allmrec_jax.cli import allmrec

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PROGRAMS = [
    path for folder in ("benchmarks", "tools", "tests/campaigns") for path in sorted((ROOT / folder).glob("*.py"))
]
PROGRAM = re.compile(r"\bpython ((?:benchmarks|tools|tests/campaigns)/\w+\.py)([^`\n#]*)")
SPAN = re.compile(r"(?<!`)`(allmrec [^`\n]+)`(?!`)")


def shown(text: str) -> Iterator[tuple[str, bool]]:
    """Command lines of a page, and whether they are whole: a line of a block is, one in a sentence may be cut short."""
    for language, block in FENCED.findall(text):
        if language == "bash":
            for line in block.replace("\\\n", " ").splitlines():
                found = re.search(r"\ballmrec .*", line.partition("  #")[0])
                if found and not line.lstrip().startswith(("pip ", "#")):
                    yield found[0], "…" not in line
    for line in SPAN.findall(FENCED.sub("", text)):
        yield line, False


def check(line: str, whole: bool, plugins: str = "") -> None:
    """Raises a ``click.UsageError`` for what the command would not take.

    Args:
        line: the command.
        whole: it must have all that is required, and values that are taken.
        plugins: the page's own Python; a command that it registers is one.
    """
    line = re.sub(r"\$\w+", "0", re.split(r" [|>] ", line)[0].rstrip(")"))
    words = shlex.split(line)[1:]
    complete = [word for word in words if word != "…"]
    command: click.Command = allmrec
    context = click.Context(command, info_name="allmrec")
    while isinstance(command, click.Group):
        if not words:
            return
        name = words.pop(0).rstrip(",")
        if not whole and (name.isupper() or name == "…"):
            return  # a place holder: `allmrec experiment TABLE`
        if name.startswith("-"):
            command.make_parser(context).parse_args([name, *words])
            return
        found = command.get_command(context, name)
        if found is None and f'"{name}"' in plugins:
            return
        if found is None:
            raise click.UsageError(f"no command {name!r}")
        command, context = found, click.Context(found, context, info_name=name)
    options, _, _ = command.make_parser(context).parse_args([word for word in words if word != "…"])
    for parameter in command.params:
        value = options.get(parameter.name)
        given = value not in (None, (), []) and type(value).__name__ != "Sentinel"
        if whole and given and isinstance(parameter, click.Option) and not isinstance(parameter.type, click.Path):
            parameter.type_cast_value(context, value)
        if whole and parameter.required and not given:
            raise click.UsageError(f"{parameter.name} is missing")
    if whole and "--print-config" in context.command.get_help(context) and "--config" not in complete:
        told = CliRunner().invoke(allmrec, [*complete, "--print-config"])  # resolves models, presets and settings
        if told.exception:
            raise click.UsageError(str(told.exception))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_exist(page: Path) -> None:
    wrong, text = [], page.read_text(encoding="utf-8")
    plugins = "".join(block for language, block in FENCED.findall(text) if language == "python")
    for line, whole in shown(text):
        try:
            check(line, whole, plugins)
        except click.UsageError as error:
            wrong.append(f"{line}: {error.format_message()}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "line",
    [
        "allmrec prepar x --out y",
        "allmrec train stage2 --data d --stepps 3",
        "allmrec train cf --data d --preset smal",
        "allmrec train cf --model sasrec",
    ],
)
def test_wrong_commands_are_found(line: str) -> None:
    with pytest.raises(click.UsageError):
        check(line, whole=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_wrong_option_of_any_command_would_be_found(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    plugins = "".join(block for language, block in FENCED.findall(text) if language == "python")
    missed = []
    for line, whole in shown(text):
        command, *rest = re.split(r"(?= [|>] |\)$)", line, maxsplit=1)
        try:
            check("".join([command, " --no-such-option", *rest]), whole, plugins)
        except click.UsageError:
            continue
        missed.append(line)
    # A place holder in a command's place, or a command that the page itself registers.
    unknown = re.compile(r"allmrec( [a-z]+)* ([A-Z]+|…)( |$)|allmrec train co-counts$")
    assert [line for line in missed if not unknown.match(line)] == []


def wrong_programs(text: str) -> list[str]:
    """What is wrong with the command lines of programs in a text: no such program, or an option that it lacks."""
    wrong = []
    for program, words in PROGRAM.findall(re.sub(r"\\+\n", " ", text)):
        if not (ROOT / program).is_file():
            wrong.append(f"{program}: no such program")
            continue
        known = options_of((ROOT / program).read_text(encoding="utf-8"))
        given = set(re.findall(r"(?<!\S)--[\w-]+", words))
        wrong += [f"{program} has no {option}" for option in sorted(given - known)]
    return wrong


def options_of(source: str) -> set[str]:
    """The options that a program declares, with click or argparse."""
    declared = {"--help"}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("option", "add_argument"):
            names = [each.value for each in node.args if isinstance(each, ast.Constant) and isinstance(each.value, str)]
            declared.update(name for each in names for name in each.split("/") if name.startswith("--"))
    return declared


@pytest.mark.parametrize("page", [*PAGES, *PROGRAMS], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_programs_exist_and_take_their_options(page: Path) -> None:
    assert wrong_programs(page.read_text(encoding="utf-8")) == []


def test_programs_are_found_with_wrong_ones_among_them() -> None:
    found = [
        program for page in (*PAGES, *PROGRAMS) for program, _ in PROGRAM.findall(page.read_text(encoding="utf-8"))
    ]
    assert len(found) > 20 and "benchmarks/cf_epoch.py" in found
    text = "`python benchmarks/cf_epoch.py --repeat 1`, python tools/absent.py\n"
    text += "    python tests/campaigns/kills.py \\\n      --kils 2"
    assert wrong_programs(text) == [
        "benchmarks/cf_epoch.py has no --repeat",
        "tools/absent.py: no such program",
        "tests/campaigns/kills.py has no --kils",
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_python_compiles(page: Path) -> None:
    for language, block in FENCED.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            source = (
                f"def block():\n{textwrap.indent(block, '    ')}" if re.search(r"^ *return ", block, re.M) else block
            )
            compile(source, str(page), "exec")
