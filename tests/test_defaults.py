"""What a caller leaves out means the same everywhere."""

import importlib
import inspect
import pkgutil

DEFAULTS = {"seed": 0, "quiet": False, "resume": False}
FOLDERS = ("baselines", "data", "embedded", "evaluation", "experiments", "inference", "models", "trained", "training")


def functions():
    for folder in FOLDERS:
        package = importlib.import_module(f"allmrec_jax.{folder}")
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            module = importlib.import_module(found.name)
            for name, function in vars(module).items():
                if inspect.isfunction(function) and function.__module__ == module.__name__:
                    yield f"{module.__name__}.{name}", function


def test_arguments_of_one_name_have_one_default():
    met = dict.fromkeys(DEFAULTS, 0)
    for name, function in functions():
        for argument in inspect.signature(function).parameters.values():
            if argument.name in DEFAULTS and argument.default is not inspect.Parameter.empty:
                assert argument.default is DEFAULTS[argument.name], f"{name}({argument})"
                met[argument.name] += 1
    assert min(met.values()) >= 8, met
