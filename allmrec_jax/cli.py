"""The command ``allmrec``: a front for one program per thing to do, each imported only when it is called."""

import importlib
import os
import sys

import click

from allmrec_jax.errors import UserError


class LazyGroup(click.Group):
    """A group whose commands are named by import path and described here, so that ``--help`` imports none."""

    def __init__(self, *args, lazy: dict[str, tuple[str, str]], **kwargs):
        super().__init__(*args, **kwargs)
        self.lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.commands, *self.lazy]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in self.lazy:
            return importlib.import_module(self.lazy[name][0]).command
        return super().get_command(ctx, name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, command.get_short_help_str()) for name, command in self.commands.items()]
        rows += [(name, help) for name, (_, help) in self.lazy.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}

allmrec = LazyGroup(
    name="allmrec",
    context_settings=CONTEXT,
    help="A-LLMRec in JAX: raw files in, recommendations and result tables out.",
    lazy={
        "synthesize": ("allmrec_jax.commands.synthesize", "write the embedded synthetic data as raw Amazon files"),
        "prepare": ("allmrec_jax.commands.prepare", "raw files to a data set"),
        "recommend": ("allmrec_jax.commands.recommend", "recommend items for a user or a history"),
        "report": ("allmrec_jax.commands.report", "results to a self-contained HTML page"),
    },
)
allmrec.add_command(
    LazyGroup(
        name="train",
        help="Train one part; each stage reads what an earlier one exported.",
        lazy={
            "cf": ("allmrec_jax.train.cf", "the collaborative-filtering model"),
            "stage1": ("allmrec_jax.train.stage1", "align item embeddings with item texts"),
            "stage2": ("allmrec_jax.train.stage2", "project users and items into the LLM's token space"),
            "sbert-nano": ("allmrec_jax.train.sbert_nano", "the embedded sentence encoder, from generated text"),
            "opt-nano": ("allmrec_jax.train.opt_nano", "the embedded language model, from generated text"),
        },
    )
)
allmrec.add_command(
    LazyGroup(
        name="eval",
        help="Measure trained systems; never trains.",
        lazy={"overall": ("allmrec_jax.eval.overall", "all test users on one candidate file (Table 1)")},
    )
)
allmrec.add_command(
    LazyGroup(
        name="experiment",
        help="Train what is missing, then evaluate and report.",
        lazy={"demo": ("allmrec_jax.eval.demo", "the whole pipeline on the embedded data")},
    )
)


def main(args: list[str] | None = None) -> None:
    """Run the command line; a :class:`UserError` or bad usage is one line and exit code 2."""
    try:
        allmrec.main(args=args, prog_name="allmrec", standalone_mode=False)
    except UserError as error:
        _fail(str(error))
    except click.ClickException as error:
        _fail(error.format_message())
    except (click.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str) -> None:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
