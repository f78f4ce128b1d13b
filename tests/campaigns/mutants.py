"""Alters the modules that decide numbers, one place at a time, and runs the tests that execute the place.

    python tests/campaigns/mutants.py --out benchmarks/results/campaign_mutants.json

The alterations are those of cosmic-ray: another operator, comparison, number or truth value, a condition negated, a
loop that is not entered. Places that decide no number are left out: annotations, decorators, imports, texts of errors.
Of each module a seeded share of the places is drawn, and of each place one alteration. A mutant is *killed* when a test
fails, does not import or runs out of time, else it *survives*: then a test is missing, or the alteration is harmless
and ``harmless_mutants.json`` says why. Beside the drawn ones stand ``ALTERATIONS``, written by hand.

First each file of tests is run once, to record which test runs which lines and how long it takes. What is done is kept
in ``--work``, so that the same command goes on; tests that changed are recorded anew, and ``--again`` runs
survivors again.
"""

import argparse
import ast
import dataclasses
import difflib
import functools
import hashlib
import json
import math
import platform
import random
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import forked
import parso
import pytest
from cosmic_ray.ast import ast_nodes
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.provider import OperatorProvider
from parso.python.tree import Function
from parso.tree import NodeOrLeaf

from allmrec_jax.fileio import write_json

WHOLE = ("allmrec_jax/metrics.py", "allmrec_jax/rng.py")
"""Modules of which every place is altered."""

MODULES = (
    *WHOLE,
    *(f"allmrec_jax/baselines/{name}.py" for name in ("ctrl", "mlp_llm", "morec", "recformer", "tallrec")),
    *(
        f"allmrec_jax/data/{name}.py"
        for name in ("buckets", "candidates", "dataset", "negatives", "prepare", "scenarios")
    ),
    *(
        f"allmrec_jax/evaluation/{name}.py"
        for name in ("answers", "ask", "genres", "intervals", "questions", "transfer")
    ),
    *(f"allmrec_jax/inference/{name}.py" for name in ("decode", "llm", "rank", "yes_no")),
    *(
        f"allmrec_jax/models/{name}.py"
        for name in ("alignment", "projectors", "recformer", "longformer", "text_encoder")
    ),
    *(
        f"allmrec_jax/models/cf/{name}.py"
        for name in ("architecture", "ctrl", "gru4rec", "ncf", "nextitnet", "protocol", "sasrec", "sequential")
    ),
    "allmrec_jax/prompts.py",
    "allmrec_jax/settings.py",
    *(
        f"allmrec_jax/training/{name}.py"
        for name in (
            *("cf", "cf_validation", "loop", "stage1", "stage1_batches", "stage1_export", "stage1_settings"),
            *("stage2", "stage2_batches", "stage2_settings", "state", "warm_start"),
        )
    ),
)

TESTS = (
    *(
        "test_metrics.py",
        "test_prompts.py",
        "test_rng.py",
        "test_defaults.py",
        "test_settings.py",
        "data/test_*.py",
        "evaluation/*.py",
        "inference/*.py",
        "models/test_*.py",
    ),
    *("training/test_*.py", "experiments/test_identities.py", "experiments/test_tables.py", "baselines/*.py"),
    *("pretrained/test_sentence_encoder.py", "pretrained/test_longformer.py"),
)
"""Tests that may kill a mutant, as patterns; others, of files, commands or pages, are not asked."""

IDENTITIES = "tests/experiments/test_identities.py"
"""Tests of all presets' values at once."""

LEFT_OUT = {"RemoveDecorator", "VariableReplacer", "VariableInserter", "ExceptionReplacer"}
ARITHMETIC = {"arith_expr", "term", "power", "expr", "and_expr", "xor_expr", "shift_expr"}


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One alteration: the text that goes and the text that comes, in whole lines, and where."""

    module: str
    line: int
    before: str
    after: str
    source: str = dataclasses.field(repr=False)

    @property
    def key(self) -> tuple[str, str, str]:
        """What stays when lines move."""
        return self.module, self.before, self.after


ALTERATIONS = (
    (
        "allmrec_jax/training/stage1_batches.py",
        "self.dataset.items_before(users, places, CF_HISTORY)",
        "self.dataset.items_before(users, places + 1, CF_HISTORY)",
        "stage 1's user vector sees the target",
    ),
    (
        "allmrec_jax/training/stage1_batches.py",
        "index) if settings.cf_train_mode else None",
        "index) if False else None",
        "cf_train_mode has no effect in stage 1",
    ),
    (
        "allmrec_jax/training/stage1_batches.py",
        '"stage1/negatives", index)',
        '"stage1/negatives", 0)',
        "stage-1 negatives are the same in every batch",
    ),
    (
        "allmrec_jax/training/stage1.py",
        '"encoder": settings.encoder_learning_rate',
        '"encoder": settings.learning_rate',
        "the encoder is trained at the autoencoders' rate",
    ),
    (
        "allmrec_jax/training/stage1_settings.py",
        "        beta=0.2,\n",
        "        beta=0.5,\n",
        "preset official of stage 1 has another value",
    ),
    (
        "allmrec_jax/training/stage1_settings.py",
        "epochs: int = setting(10",
        "epochs: int = setting(11",
        "preset paper of stage 1 has another value",
    ),
    (
        "allmrec_jax/training/stage2_batches.py",
        "self.cf.user_vectors(question.users, question.histories, key=key)",
        "self.cf.user_vectors(question.users, np.sort(question.histories, axis=1), key=key)",
        "stage 2's user vector is from a reordered history",
    ),
    (
        "allmrec_jax/training/cf.py",
        "jax.random.fold_in(jax.random.fold_in(key, len(data.buckets)), number)",
        "jax.random.fold_in(jax.random.fold_in(key, len(data.buckets)), 0)",
        "the same negatives and dropout in every step of an epoch of CF training",
    ),
    (
        "allmrec_jax/training/cf.py",
        "users / total))), 0, users)",
        "users / total))), 0, users // 2)",
        "draws with replacement are from half of the users",
    ),
    (
        "allmrec_jax/data/dataset.py",
        "slice_fraction: float = 0.35",
        "slice_fraction: float = 0.30",
        "cold and warm slices of 30%",
    ),
)
"""Alterations that once no test noticed: module, text, other text, what they do."""


def _decides(node: NodeOrLeaf) -> bool:
    """Whether ``node`` is none of an annotation, a decorator, an import or the text of an error."""
    inner: NodeOrLeaf | None = node
    while inner is not None and inner.parent is not None:
        outer = inner.parent
        if outer.type in ("raise_stmt", "decorator", "import_from", "import_name", "tfpdef"):
            return False
        if outer.type == "annassign" and inner is outer.children[1]:
            return False
        if (
            isinstance(outer, Function)
            and outer.type == "funcdef"  # lambdas are functions too
            and (inner is outer.annotation or outer.name.value == "__repr__")
        ):
            return False
        inner = outer
    return True


@functools.cache
def sites(module: str) -> list[tuple[str, list[tuple[str, int]]]]:
    """The places of a module that can be altered, in order: their kind and the alterations, (operator, occurrence)."""
    nodes = [
        node
        for node in ast_nodes(parso.parse((forked.REPOSITORY / module).read_text()))
        if node.type in ("number", "keyword", "operator", "factor", "not_test", "comparison", "test")
        or node.type in ("if_stmt", "while_stmt", "assert_stmt", "for_stmt")
    ]
    found: dict[tuple[Any, str], list[tuple[str, int]]] = defaultdict(list)
    for name in OperatorProvider():
        if name in LEFT_OUT:
            continue
        operator, occurrence, kind = OperatorProvider()[name](), 0, name.split("_")[0]
        for node in nodes:
            for position in operator.mutation_positions(node):
                arithmetic = kind != "ReplaceBinaryOperator" or node.parent.type in ARITHMETIC
                if arithmetic and _decides(node):
                    found[position, kind].append((name, occurrence))
                occurrence += 1
    return [(kind, alterations) for (_, kind), alterations in sorted(found.items())]


def altered(module: str, operator: str, occurrence: int) -> Mutant | None:
    """The mutant, or None where the alteration is no other program or none at all."""
    source = (forked.REPOSITORY / module).read_text()
    other = mutate_code(source, OperatorProvider()[operator](), occurrence)
    try:
        if other is None or ast.dump(ast.parse(other)) == ast.dump(ast.parse(source)):
            return None
    except SyntaxError:
        return None
    return _mutant(module, source, other)


def _mutant(module: str, source: str, other: str) -> Mutant:
    lines, others = source.splitlines(), other.splitlines()
    changes = [
        change for change in difflib.SequenceMatcher(None, lines, others, False).get_opcodes() if change[0] != "equal"
    ]
    first, last = changes[0], changes[-1]
    before, after = lines[first[1] : last[2]], others[first[3] : last[4]]
    line = first[1] + 1
    for number, (old, new) in enumerate(zip(before, after, strict=False)):
        if old != new:
            line = first[1] + 1 + number
            break
    return Mutant(module, line, "\n".join(before).strip(), "\n".join(after).strip(), other)


def drawn(module: str, share: float, seed: int) -> Iterator[Mutant]:
    """A seeded sample of the places of a module, at least eight, with one mutant of each."""
    places = sites(module)
    count = len(places) if module in WHOLE else min(len(places), max(8, round(share * len(places))))
    rng = random.Random(f"{seed} {module}")
    for _, alterations in rng.sample(places, count):
        for operator, occurrence in rng.sample(alterations, len(alterations)):
            mutant = altered(module, operator, occurrence)
            if mutant is not None:
                yield mutant
                break


def kept_drawn(work: Path, module: str, share: float, seed: int) -> list[Mutant]:
    """As ``drawn``, out of ``work`` where these were drawn before."""
    state = f"{seed} {share} {(forked.REPOSITORY / module).read_text()}"
    kept = work / "drawn" / f"{hashlib.sha256(state.encode()).hexdigest()[:16]}.json"
    if not kept.exists():
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(json.dumps([dataclasses.asdict(mutant) for mutant in drawn(module, share, seed)]))
    return [Mutant(**fields) for fields in json.loads(kept.read_text())]


def by_text(module: str, text: str, other: str) -> Mutant:
    """The mutant that has ``other`` where the module has ``text``, which it must have once."""
    source = (forked.REPOSITORY / module).read_text()
    if source.count(text) != 1:
        raise ValueError(f"{module} does not hold {text!r} once")
    return _mutant(module, source, source.replace(text, other))


# ---------------------------------------------------------------------------------------------- which tests to run


def test_files() -> list[str]:
    """The files of ``TESTS``."""
    root = forked.REPOSITORY / "tests"
    found = (sorted(root.glob(pattern)) for pattern in TESTS)
    return [path.relative_to(forked.REPOSITORY).as_posix() for paths in found for path in paths]


def record(work: Path, files: list[str], until: float) -> bool:
    """Runs each file of tests once and keeps the lines that each test ran; returns whether all are done."""
    kept = work / "recorded"
    kept.mkdir(exist_ok=True)
    for file in files:
        target = kept / f"{file.replace('/', '.')}.json"
        changed = (work / "copy" / file).stat().st_mtime
        if not target.exists() or target.stat().st_mtime < changed:
            if time.monotonic() > until:
                return False
            found = forked.run_tests(work / "copy", [file], seconds=1200, record=True)
            target.write_text(json.dumps(found))
            print(
                file,
                f"{sum(found['seconds'].values()):.0f} s",
                len(found["passed"]),
                "failed:",
                found["failed"],
                flush=True,
            )
    return True


@dataclasses.dataclass(frozen=True)
class Recorded:
    """What ``record`` kept: seconds of each test that passed, and by module and line the tests that ran the line."""

    seconds: dict[str, float]
    lines: dict[str, dict[int, set[str]]]

    @classmethod
    def read(cls, work: Path) -> "Recorded":
        seconds: dict[str, float] = {}
        lines: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
        for path in sorted((work / "recorded").iterdir()):
            found = json.loads(path.read_text())
            seconds.update({test: found["seconds"][test] for test in found["passed"]})
            for module, by_line in found.get("lines", {}).items():
                for line, tests in by_line.items():
                    lines[module][int(line)].update(set(tests) & seconds.keys())
        return cls(seconds, lines)

    def tests(self, mutant: Mutant, budget: float) -> list[str]:
        """Tests that run the altered place, those of the nearest files first, then the others of their files.

        A value that is set on import is run by whatever runs the module, and by files that name it. At most ``budget``
        seconds of tests.
        """
        span, on_import = _statement(mutant)
        of_module = self.lines.get(mutant.module, {})
        chosen = set().union(*(of_module.get(line, set()) for line in span))
        dotted = mutant.module.removesuffix(".py").replace("/", ".")
        if on_import or not chosen:
            chosen |= set().union(*of_module.values())
            naming = {file for file in test_files() if f"{dotted} " in (forked.REPOSITORY / file).read_text()}
            chosen |= {test for test in self.seconds if test.split("::")[0] in naming}
            chosen |= {test for test in self.seconds if test.startswith(IDENTITIES)}
        by_file: dict[str, list[str]] = defaultdict(list)
        for test in sorted(chosen, key=lambda test: self.seconds[test]):
            by_file[test.split("::")[0]].append(test)
        own = f"tests/{'/'.join(mutant.module.split('/')[1:-1])}".rstrip("/") + "/"
        stem = Path(mutant.module).stem

        def rank(file: str) -> tuple[int, float]:
            name = Path(file).stem.removeprefix("test_")
            nearest = file.startswith(own) and (name == stem or stem.startswith(f"{name}_"))
            return int(not nearest and file != IDENTITIES), sum(self.seconds[test] for test in by_file[file])

        files = sorted(by_file, key=rank)
        beside = {
            file: [test for test in self.seconds if test.split("::")[0] == file and test not in chosen]
            for file in files
        }
        queue = [test for file in files for test in by_file[file]] + [test for file in files for test in beside[file]]
        taken, total = [], 0.0
        for test in queue:
            if total + self.seconds[test] <= budget:
                taken.append(test)
                total += self.seconds[test]
        return taken


def _statement(mutant: Mutant) -> tuple[range, bool]:
    """The lines of the statement that is altered, without the statements in it, and whether it runs on import."""
    tree = ast.parse((forked.REPOSITORY / mutant.module).read_text())
    span, on_import = range(mutant.line, mutant.line + 1), True
    node: ast.AST = tree
    while True:
        inner = [
            child
            for child in ast.walk(node)
            if child is not node
            and isinstance(child, ast.stmt)
            and child.lineno <= mutant.line <= (child.end_lineno or child.lineno)
        ]
        if not inner:
            return span, on_import
        child = min(inner, key=lambda child: (child.lineno, -(child.end_lineno or 0)))
        body: list[ast.stmt] = getattr(child, "body", [])
        in_body = bool(body) and body[0].lineno <= mutant.line
        if isinstance(child, ast.FunctionDef):
            on_import = not in_body
        end = child.end_lineno or child.lineno
        header = body and not in_body and not isinstance(child, ast.FunctionDef | ast.ClassDef)
        span = range(child.lineno, body[0].lineno if header else end + 1)
        node = child


# ------------------------------------------------------------------------------------------------------- the campaign


def attempt(mutant: Mutant, recorded: Recorded, copy: Path, budget: float) -> dict[str, Any]:
    """Runs the tests on the mutant; ``killed`` says whether one noticed, ``by`` which or how."""
    tests = recorded.tests(mutant, budget)
    if not tests:
        return {"killed": False, "by": "no test runs it", "tests": 0}
    seconds = 60 + 4 * sum(recorded.seconds[test] for test in tests)
    with forked.replaced(copy / mutant.module, mutant.source):
        found = forked.run_tests(copy, ["-x", *tests], seconds=seconds)
        if found["code"] == pytest.ExitCode.USAGE_ERROR:
            # Tests are named by values that the mutant changes, or do not import: their files tell.
            files = list(dict.fromkeys(test.split("::")[0] for test in tests))
            found = forked.run_tests(copy, ["-x", *files], seconds=seconds)
    if found["code"] == pytest.ExitCode.INTERNAL_ERROR:
        raise RuntimeError(f"pytest itself failed on {mutant}: {(copy / 'output.txt').read_text()}")
    by = found["failed"][0] if found["failed"] else found.get("ended", "")
    return {"killed": found["code"] != 0, "by": by, "tests": len(tests)}


def told(mutant: Mutant) -> dict[str, Any]:
    return {"module": mutant.module, "line": mutant.line, "before": mutant.before, "after": mutant.after}


def interval(killed: int, total: int) -> list[float]:
    """Wilson's 95% interval of a share."""
    z, share = 1.959964, killed / total
    middle = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return [round((middle + sign * half) / (1 + z * z / total), 4) for sign in (-1, 1)]


def campaign(
    work: Path, mutants: list[Mutant], budget: float, until: float, again: bool
) -> tuple[list[dict[str, Any]], bool]:
    """Attempts what has not been, or survived and is to be run again; returns all outcomes and whether all are in."""
    kept = work / "outcomes.jsonl"
    done: dict[tuple[str, str, str], dict[str, Any]] = {}
    for line in kept.read_text().splitlines() if kept.exists() else ():
        outcome = json.loads(line)
        done[outcome["module"], outcome["before"], outcome["after"]] = outcome
    recorded = Recorded.read(work)
    for mutant in mutants:
        if mutant.key in done and (done[mutant.key]["killed"] or not again):
            continue
        if time.monotonic() > until:
            break
        started = time.monotonic()
        outcome = told(mutant) | attempt(mutant, recorded, work / "copy", budget)
        done[mutant.key] = outcome
        with kept.open("a") as file:
            file.write(json.dumps(outcome) + "\n")
        verdict = "killed" if outcome["killed"] else "SURVIVED"
        print(f"{verdict} {mutant.module}:{mutant.line} {time.monotonic() - started:.1f} s {outcome['by']}", flush=True)
        if not outcome["killed"]:
            print(f"    - {mutant.before}\n    + {mutant.after}", flush=True)
    found = [done[mutant.key] for mutant in mutants if mutant.key in done]
    return found, len(found) == len(mutants)


def summary(outcomes: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Figures by module and overall, every survivor with why it is harmless, and those written by hand."""
    reasons = {
        (known["module"], known["before"], known["after"]): known["reason"]
        for known in json.loads(Path(__file__).with_name("harmless_mutants.json").read_text())
    }
    modules: dict[str, dict[str, int]] = {}
    survivors = []
    for outcome in outcomes:
        of_module = modules.setdefault(
            outcome["module"], {"places": len(sites(outcome["module"])), "mutants": 0, "killed": 0}
        )
        of_module["mutants"] += 1
        of_module["killed"] += outcome["killed"]
        if not outcome["killed"]:
            key = outcome["module"], outcome["before"], outcome["after"]
            survivors.append({name: outcome[name] for name in ("module", "line", "before", "after")})
            survivors[-1]["reason"] = reasons.get(key)
    total, killed = len(outcomes), sum(outcome["killed"] for outcome in outcomes)
    return {
        "seed": seed,
        "mutants": total,
        "killed": killed,
        "rate": round(killed / total, 4),
        "interval": interval(killed, total),
        "modules": dict(sorted(modules.items())),
        "survivors": survivors,
    }


def main() -> None:
    """The long form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.12, help="of each module's places")
    parser.add_argument("--most", type=int, help="mutants, a draw from those of all modules")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=float, default=60, help="seconds of tests for one mutant")
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after so long; the same command goes on")
    parser.add_argument("--again", action="store_true", help="run survivors again")
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="modules whose path holds it")
    parser.add_argument("--work", type=Path, default=Path("runs/mutants"), help="where the copy and the outcomes are")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    work, until = given.work.resolve(), time.monotonic() + given.seconds
    forked.copy_repository(work / "copy")
    forked.load_libraries()
    if not record(work, test_files(), until):
        sys.exit("Not all tests are recorded: the same command goes on.")
    modules = [module for module in MODULES if not given.only or any(text in module for text in given.only)]
    hand = [by_text(module, text, other) for module, text, other, _ in ALTERATIONS]
    mutants = [mutant for module in modules for mutant in kept_drawn(work, module, given.share, given.seed)]
    mutants = list({mutant.key: mutant for mutant in mutants}.values())
    random.Random(given.seed).shuffle(mutants)
    mutants = mutants[: given.most]
    outcomes, complete = campaign(work, hand + mutants, given.budget, until, given.again)
    written = {mutant.key: what for mutant, (*_, what) in zip(hand, ALTERATIONS, strict=True)}
    keyed = {(outcome["module"], outcome["before"], outcome["after"]): outcome for outcome in outcomes}
    found = summary([outcome for key, outcome in keyed.items() if key not in written], given.seed)
    found["not_run"] = len(mutants) + len(hand) - len(outcomes)
    found["by_hand"] = [
        {"what": what, "killed": keyed[key]["killed"], "by": keyed[key]["by"]}
        for key, what in written.items()
        if key in keyed
    ]
    print(json.dumps({name: found[name] for name in ("mutants", "killed", "rate", "interval")}))
    unexplained = [survivor for survivor in found["survivors"] if survivor["reason"] is None]
    for survivor in unexplained:
        print(json.dumps(survivor, indent=2))
    if given.out is not None:
        about = {
            "command": " ".join(["python", *sys.argv]),
            "commit": subprocess.run(
                ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
            ).stdout.strip(),
            "versions": {name: version(name) for name in ("cosmic-ray", "jax", "pytest")}
            | {"python": platform.python_version()},
            "machine": platform.machine(),
            "seconds_of_tests": given.budget,
        }
        write_json(given.out, {**about, **found})
    if not complete:
        sys.exit("Not all mutants have been run: the same command goes on.")
    sys.exit(bool(unexplained) or not all(alteration["killed"] for alteration in found["by_hand"]))


if __name__ == "__main__":
    main()
