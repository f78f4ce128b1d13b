"""The page on adding an architecture: its code is run as it stands, outside the package, and all that uses a language
model is asked of it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from allmrec_jax.cli import allmrec
from allmrec_jax.errors import UserError
from allmrec_jax.models.llm.families import FAMILIES, register_family
from allmrec_jax.pretrained.llm import load_config

PAGE = Path(__file__).parents[3] / "docs" / "adding_a_family.md"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What the page's two blocks leave behind, and the directory that they ran in as ``root``."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {"__name__": "the_page"}
    with pytest.MonkeyPatch.context() as patch:
        names["root"] = tmp_path_factory.mktemp("family")
        patch.chdir(names["root"])
        try:
            for block in blocks:
                exec(block, names)
            yield names
        finally:
            FAMILIES.records.pop("reed", None)


def test_its_weights_are_read_as_they_were_written(program: dict[str, Any]) -> None:
    config = load_config(program["root"] / "reed")
    assert config == program["ReedConfig"]()
    for leaf in program["layout"](config):
        node: Any = program["params"]
        for name in leaf.path:
            node = node[name]
        assert node.shape == leaf.stacked_shape(config)


def test_it_is_planned(program: dict[str, Any]) -> None:
    asked = ["plan", "--llm", str(program["root"] / "reed"), "--mesh", "tensor=4", "--length", "256", "--json"]
    found = json.loads(CliRunner().invoke(allmrec, asked, catch_exceptions=False).stdout)
    words, hidden, units = 4096 * 32, 32, 64
    # Over four devices: two key-value heads are whole on each, all other matrices are split.
    layer = 2 * hidden * hidden // 2 + (2 * hidden * hidden + 2 * hidden * units) // 4 + hidden
    assert found["bytes_per_device"]["weights"] == 2 * (words // 4 + hidden + 2 * layer)


def test_another_variant_of_it_is_refused(program: dict[str, Any], tmp_path: Path) -> None:
    body = program["ReedConfig"]().to_dict()
    (tmp_path / "config.json").write_text(json.dumps(body | {"activation": "gelu"}))
    with pytest.raises(UserError, match="activation is 'gelu'; only Reed with activation 'relu' is supported"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(body | {"vocab_size": -1}))
    with pytest.raises(UserError, match="vocab_size is -1"):
        load_config(tmp_path)
    with pytest.raises(UserError, match="already"):
        register_family(program["FAMILY"])


def test_an_unknown_architecture_is_told_the_known_ones(program: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "rwkv"}))
    with pytest.raises(UserError, match=r"config\.json: model_type is 'rwkv'; the architectures known here: opt.*reed"):
        load_config(tmp_path)
