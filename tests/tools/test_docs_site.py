"""What the pages become on their way into the site."""

import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site():
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        yield runpy.run_path(str(ROOT / "tools" / "docs_site.py"))
    finally:
        sys.path.remove(str(ROOT / "tools"))


def test_equations_become_mathml_and_code_stays(site):
    text = site["outside_code"](
        "a $x_i$ b `$HOME` costs $5\n\n```bash\necho $A $B\n```\n\n$$\ny = 2\n$$\n", site["equations"]
    )
    assert text.count("<math") == 2 and "<msub>" in text
    assert "`$HOME`" in text and "echo $A $B" in text and "costs $5" in text
    assert '<div><math xmlns="http://www.w3.org/1998/Math/MathML" display="block">' in text


def test_links_are_those_of_the_site_and_none_leads_out_of_it(site):
    places = {"docs/a.md": "a.md", "docs/b/c.md": "b/c.md", "docs/n.ipynb": "n.md", "X.json": "json/X.json"}
    text = "[a](../a.md#part) [x](../../X.json) [n](../n.ipynb) [w](https://a.example/) `[c](none.md)`"
    expected = "[a](../a.md#part) [x](../json/X.json) [n](../n.md) [w](https://a.example/) `[c](none.md)`"
    assert site["relinked"](text, "docs/b/c.md", places) == expected
    with pytest.raises(ValueError, match=r"docs/a.md: the site has no secret.py"):
        site["relinked"]("[s](../secret.py)", "docs/a.md", places)


def test_a_notebook_shows_its_code_and_what_it_gave(site):
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "text"]},
        {
            "cell_type": "code",
            "source": ["1 < 2"],
            "outputs": [
                {"output_type": "stream", "text": ["a < b\n"]},
                {"output_type": "execute_result", "data": {"text/plain": ["t"], "text/html": ["<table>\n\n</table>"]}},
            ],
        },
    ]
    page = site["notebook_page"]({"cells": cells})
    assert page.startswith("# Title\ntext\n\n```python\n1 < 2\n```\n\n")
    assert "<pre>a &lt; b</pre>" in page and "<table>\n</table>" in page


def test_the_pages_get_their_tables_from_the_results(site, tmp_path: Path):
    site["gather"](tmp_path)
    shown = (tmp_path / "results" / "movielens.md").read_text()
    assert "| SASRec |" in shown and "](../json/movielens_table1.json)" in shown
    assert (tmp_path / "json" / "movielens_table1.json").is_file()
    assert "| SASRec |" not in (ROOT / "docs" / "results" / "movielens.md").read_text()
