"""The official code's own settings, read out of its programs without running them."""

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from allmrec_jax.errors import UserError
from allmrec_jax.parity.reference import Outputs, kind


def read(clone: Path, files: Mapping[str, str]) -> Outputs:
    """What the clone's programs do where no option is given; ``files`` are its paths by role.

    Raises:
        UserError: a program has no such value.
    """
    programs = [_Program(clone / files[name]) for name in ("pretraining", "arguments", "training", "model")]
    cf, stages, training, model = programs
    return kind(
        "exact",
        {
            **{f"cf {name}": np.asarray(cf.option(name)) for name in CF_OPTIONS},
            "cf beta2": np.asarray(cf.keyword("Adam", "betas")[1]),
            "stage 1 batch": np.asarray(stages.option("batch_size1")),
            "stage 1 rate": np.asarray(stages.option("stage1_lr")),
            "stage 1 encoder rate": np.asarray(stages.option("stage1_lr")),
            "stage 1 epochs": np.asarray(stages.option("num_epochs")),
            "stage 1 beta2": np.asarray(training.keyword("Adam", "betas", 0)[1]),
            "stage 1 latent": np.asarray(model.argument("two_layer_mlp", "Linear", 1)),
            "stage 2 batch": np.asarray(stages.option("batch_size2")),
            "stage 2 rate": np.asarray(stages.option("stage2_lr")),
            # Inference loads the projectors of this epoch, whichever number were trained.
            "stage 2 epochs": np.asarray(training.variable("phase2_epoch")),
            "stage 2 beta2": np.asarray(training.keyword("Adam", "betas", 1)[1]),
            "stage 2 history": np.asarray(model.argument("pre_train_phase2", "make_interact_text", 1)),
            "stage 2 candidates": np.asarray(model.variable("candidate_num")),
            "history of the stages": np.asarray(stages.option("maxlen")),
            "repetition penalty": np.asarray(model.keyword("generate", "repetition_penalty")),
            # Under transformers 4.32.1 all but one of these are new.
            "new tokens": np.asarray(model.keyword("generate", "max_length") - 1),
        },
    )


CF_OPTIONS = ("batch_size", "lr", "maxlen", "hidden_units", "num_blocks", "num_epochs", "num_heads", "dropout_rate")
"""Options of the official CF training that a preset has a value for; its ``l2_emb`` is 0."""


class _Program:
    """A program's values by where they stand."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.tree = ast.parse(path.read_text())
        except (OSError, SyntaxError, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read ({error}): not the official repository") from error

    def option(self, name: str) -> Any:
        """The default of a command-line option."""
        for call in self._calls(self.tree, "add_argument"):
            if ast.literal_eval(call.args[0]) == f"--{name}":
                return self._keyword(call, "default")
        raise self._missing(f"option --{name}")

    def keyword(self, function: str, name: str, place: int = 0) -> Any:
        """A keyword of the call, of those that there are, at this place that has it."""
        found = [call for call in self._calls(self.tree, function) if any(word.arg == name for word in call.keywords)]
        if place >= len(found):
            raise self._missing(f"{name} of {function}")
        return self._keyword(found[place], name)

    def argument(self, inside: str, function: str, place: int) -> Any:
        """A positional argument of the first call of ``function`` in the class or function ``inside``."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == inside:
                for call in self._calls(node, function):
                    return ast.literal_eval(call.args[place])
        raise self._missing(f"{function} in {inside}")

    def variable(self, name: str) -> Any:
        """What is assigned to a variable."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Assign) and [getattr(target, "id", None) for target in node.targets] == [name]:
                return ast.literal_eval(node.value)
        raise self._missing(f"variable {name}")

    def _calls(self, tree: ast.AST, function: str) -> list[ast.Call]:
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        named = [call for call in calls if function in (getattr(call.func, "attr", ""), getattr(call.func, "id", ""))]
        return sorted(named, key=lambda call: call.lineno)

    def _keyword(self, call: ast.Call, name: str) -> Any:
        for word in call.keywords:
            if word.arg == name:
                return ast.literal_eval(word.value)
        raise self._missing(name)

    def _missing(self, what: str) -> UserError:
        return UserError(f"{self.path} has no {what}: not the official repository")
