"""The paper's tables as data: a record of each, which one program makes (:mod:`allmrec_jax.experiments.make`)."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from allmrec_jax.errors import UserError
from allmrec_jax.registry import Registry

if TYPE_CHECKING:
    from allmrec_jax.data.dataset import Dataset
    from allmrec_jax.data.scenarios import Scenario

PRESETS = ("paper", "small")
"""The presets that every kind of training has, and an experiment can be made at."""


class Case(NamedTuple):
    """One result of a table; most tables have one.

    Attributes:
        title: of the rendered table.
        scenario: who is trained on and who is asked about.
        folder: beneath the table's, where it has several cases.
        published: the paper's table, see :func:`allmrec_jax.report.paper.hit_at_1`.
        question: what systems are asked in words for the user's favourite genres, in place of a recommendation.
    """

    title: str
    scenario: "Scenario"
    folder: str = ""
    published: str = "table1_overall"
    question: str | None = None


@dataclasses.dataclass(frozen=True)
class OwnOption:
    """An option that one table has beside those of all.

    Attributes:
        name: of the argument, and of the option with ``--`` before it.
        help: what it does, in a line.
        type: of its value; ``bool`` is a flag, ``"data"`` the directory of a data set.
        default: its value where nobody gives one, or a function that says it.
        multiple: whether it may be repeated.
        minimum: of a number.
        everywhere: whether the command that makes all tables has it too.
    """

    name: str
    help: str
    type: Any = str
    default: Any = None
    multiple: bool = False
    minimum: int | None = None
    everywhere: bool = False

    def default_value(self) -> Any:
        """Its value where nobody gives one."""
        return self.default() if callable(self.default) else self.default


Cases = Callable[..., list[Case]]
"""The cases of a table on a data set, the first argument; its own options are given by name."""


@dataclasses.dataclass(frozen=True)
class PaperTable:
    """A table or figure of the paper.

    Attributes:
        name: of its command, e.g. ``"table4"``.
        about: what it shows, in a line.
        details: what its command does, for ``--help``.
        systems: the names of its rows where the user names none; called, for they follow the registries.
        cases: see :data:`Cases`.
        example: what stands behind ``allmrec experiment NAME --data data/movies`` in its example.
        budget: one of :data:`allmrec_jax.experiments.rows.BUDGETS`, where it is not the preset's own.
        reference: the row that every other one is tested against.
        options: its own.
    """

    name: str
    about: str
    details: str
    systems: Callable[[], Sequence[str]]
    cases: Cases
    example: str = ""
    budget: str | None = None
    reference: str = "SASRec"
    options: tuple[OwnOption, ...] = ()


# Rows.

_TALLREC = ("TALLRec (yes-no)", "TALLRec (titles)")
_TEXT_MODELS = ("MoRec", "CTRL", "RECFORMER", "RECFORMER (tiny)")


def _every_row() -> Sequence[str]:
    from allmrec_jax.experiments.rows import known_rows

    return known_rows()


def _with_backbones() -> Sequence[str]:
    """Every CF model, each with A-LLMRec on it behind it."""
    from allmrec_jax.evaluation.systems import SYSTEMS

    models = [name for name, system in SYSTEMS.items() if system.trained == "cf"]
    return [row for name in models for row in (name, f"A-LLMRec ({name})")]


def _ablations(table: str) -> Callable[[], Sequence[str]]:
    def names() -> Sequence[str]:
        from allmrec_jax.experiments.rows import rows_of

        return ("A-LLMRec", *rows_of(table))

    return names


def _writers() -> Sequence[str]:
    from allmrec_jax.evaluation.systems import SYSTEMS

    return [name for name, system in SYSTEMS.items() if system.writes is not None]


def _fixed(*names: str) -> Callable[[], Sequence[str]]:
    return lambda: names


# Cases.


def _everybody(title: str, published: str = "table1_overall") -> Cases:
    """One case: everybody is trained on and asked about."""

    def cases(dataset: "Dataset") -> list[Case]:
        from allmrec_jax.data.scenarios import overall

        return [Case(title, overall(dataset), published=published)]

    return cases


def _cold_users(dataset: "Dataset", *, simulate: bool) -> list[Case]:
    from allmrec_jax.data.scenarios import cold_users

    cases = []
    for scenario in cold_users(dataset, simulate=simulate):
        users, length = f"{scenario.about['users']:,}", scenario.about["history"]
        if scenario.about["simulated"]:
            title = f"Table 5: simulated cold users ({users}), histories of length {length}"
            cases.append(Case(title, scenario, str(length), "table5_cold_users"))
        else:
            cases.append(Case(f"Table 5: cold users ({users})", scenario, published="table5_cold_users"))
    return cases


def _few_users(dataset: "Dataset", *, users: Sequence[int], sample_seed: int) -> list[Case]:
    from allmrec_jax.data.scenarios import few_shot

    return [
        Case(
            f"Table 6: trained on {count} users",
            few_shot(dataset, count, sample_seed),
            str(count),
            f"table6_few_shot/{count}",
        )
        for count in users
    ]


def _other_data(dataset: "Dataset", *, target: Any) -> list[Case]:
    from allmrec_jax.data.dataset import load_dataset
    from allmrec_jax.data.scenarios import cross_domain

    if target is None:
        raise UserError("Table 7 asks about a second data set: name one with --target")
    asked = load_dataset(target)
    title = f"Table 7: trained on {dataset.name}, asked about {asked.name}"
    return [Case(title, cross_domain(dataset, asked), published="table7_cross_domain")]


def _genre_question() -> str:
    from allmrec_jax.prompts import GENRE_QUESTION

    return GENRE_QUESTION


def _with_genres(dataset: "Dataset", *, question: str) -> list[Case]:
    from allmrec_jax.data.scenarios import overall
    from allmrec_jax.evaluation.genres import Genres

    Genres.of(dataset)  # refuses data without genres
    return [Case("Figures 4 and 5: favourite genres", overall(dataset), question=question)]


TABLES = Registry(
    "table",
    (
        PaperTable(
            "table1",
            "every system overall (Table 1)",
            """Train what is missing, ask every system about the same users and candidates, and write the table.

            Finished trainings are found by their identity and not repeated; an interrupted table goes on where it was.
            Warm and cold items are columns of it, backbones rows of it.""",
            _every_row,
            _everybody("Table 1: overall"),
            "--seeds 3 --llm-users 500",
        ),
        PaperTable(
            "table4",
            "cold and warm items (Table 4)",
            """Compare systems on users whose next item is cold or warm.

            These are the users whose test item is in the bottom or top 35% of the catalogue by training interactions:
            slices of Table 1's answers, which are read again where they are there.""",
            _fixed("SASRec", *_TEXT_MODELS, *_TALLREC, "A-LLMRec", "A-LLMRec (SBERT)"),
            _everybody("Table 4: cold and warm items"),
            "--seeds 3",
        ),
        PaperTable(
            "table5",
            "users with three interactions (Table 5)",
            """Compare systems on users that no training has met.

            Users with exactly three interactions, which preparation kept out of training; the last one is to be found.
            Where a data set has none, users are held out of training, and their histories are cut to two items, one or
            none: each is a table of its own, in a folder named by that number, and its rows say *simulated*.""",
            _fixed(
                "SASRec",
                *(name for name in _TEXT_MODELS if name != "CTRL"),
                *_TALLREC,
                "MLP-LLM",
                "A-LLMRec",
            ),
            _cold_users,
            "--seeds 3",
            options=(
                OwnOption(
                    "simulate", "Hold users out of training even where the data set has cold ones.", bool, default=False
                ),
            ),
        ),
        PaperTable(
            "table6",
            "few training users (Table 6)",
            "Train every system on so many users and ask about all users; a folder of results for each number.",
            _fixed("SASRec", "MoRec", *_TALLREC, "A-LLMRec", "A-LLMRec (SBERT)"),
            _few_users,
            "--users 256 --users 128",
            budget="few-shot",
            options=(
                OwnOption("users", "To train on; may be repeated.", int, (256, 128), multiple=True, minimum=2),
                OwnOption("sample_seed", "Of the sample of training users.", int, 0),
            ),
        ),
        PaperTable(
            "table7",
            "trained on one data set, asked about another (Table 7)",
            """Train on --data and ask about the users and items of --target, without training on it.

            Items known by vectors have untrained ones there, items known by their texts are encoded.""",
            _fixed(
                "SASRec",
                *(name for name in _TEXT_MODELS if name != "CTRL"),
                *_TALLREC,
                "A-LLMRec",
                "A-LLMRec (SBERT)",
            ),
            _other_data,
            "--target data/games",
            options=(
                OwnOption(
                    "target",
                    "Another data set, whose users and items systems are asked about without being trained on it "
                    "(Table 7).",
                    "data",
                    everywhere=True,
                ),
            ),
        ),
        PaperTable(
            "table8",
            "stage 1 without each of its parts (Table 8)",
            """Train both stages again without each loss of stage 1, and with the sentence encoder frozen.

            Every row has the same budget, A-LLMRec among them; preset small reduces it, --whole-budget does not.""",
            _ablations("table8"),
            _everybody("Table 8: ablations of stage 1", "table8_stage1_ablation"),
            budget="reduced",
            reference="A-LLMRec",
        ),
        PaperTable(
            "table9",
            "stage 2 without user or item vectors (Table 9)",
            """Train stage 2 again without user vectors, without item vectors, and with random ones.

            Each row is trained without the vectors that it lacks, or with fixed random numbers of N(0, 1) in place of
            the items', the same in training and evaluation. Preset small starts the projectors with the vectors that a
            row has, and trains all rows at a reduced budget, A-LLMRec among them; --whole-budget does not.""",
            _ablations("table9"),
            _everybody("Table 9: ablations of stage 2", "table9_stage2_ablation"),
            budget="reduced",
            reference="A-LLMRec",
        ),
        PaperTable(
            "table10",
            "time to train and to answer (Table 10)",
            """Train and ask A-LLMRec, A-LLMRec_all and TALLRec, and say how long each took.

            Training time is that of the system's own stages, without the CF model, and is known for trainings that an
            experiment ran. Answering time is a whole evaluation, model loading and compilation with it, over its
            batches. Those of trainings and answers that were there before are those of then; name fresh --checkpoints
            to measure all in one run.""",
            _fixed(*_TALLREC, "A-LLMRec", "A-LLMRec_all"),
            _everybody("Table 10: speed"),
            "--llm-users 500",
            reference="A-LLMRec",
        ),
        PaperTable(
            "table11",
            "CF models, alone and under A-LLMRec (Table 11)",
            """Train A-LLMRec on each CF model; every such row is also tested against its own backbone.

            Preset small trains both stages at a reduced budget, on SASRec too; --whole-budget does not.""",
            _with_backbones,
            _everybody("Table 11: other collaborative-filtering models", "table11_model_agnostic"),
            budget="reduced",
        ),
        PaperTable(
            "genres",
            "favourite genres in free text (Figures 4 and 5)",
            """Ask language models for users' favourite genres, on data with genres.

            They are shown a history alone, A-LLMRec with the items' vectors, and are asked in words.""",
            _writers,
            _with_genres,
            "--llm-users 500",
            reference="Majority genre",
            options=(OwnOption("question", "What stands behind the history's closing quote.", str, _genre_question),),
        ),
    ),
)
"""Every table by name, in the paper's order."""


def register_table(table: PaperTable) -> PaperTable:
    """Adds a table, for ``allmrec experiment NAME``; returns it.

    Raises:
        UserError: the name is taken.
    """
    return TABLES.register(table)
