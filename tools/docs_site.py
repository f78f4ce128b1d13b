"""Gathers the pages of the documentation site in ``build/docs``, where Zensical renders them: ``make docs``.

What is done to them on the way:

* equations (``$…$``, and ``$$`` on lines of their own) become MathML, so that no page loads a script from elsewhere;
* the results pages get their tables and figures from ``benchmarks/results``, whose files are copied beside them;
* a notebook becomes a page, with the outputs that it was committed with;
* CONTRIBUTING.md, CHANGELOG.md and the cards of the embedded models become pages too.

A link that leaves ``docs/`` for anything else is an error: the site would not have it.

    python tools/docs_site.py
"""

import argparse
import base64
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import latex2mathml.converter
import readme_results

ROOT = Path(__file__).resolve().parents[1]

STAGED = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "LICENSE": "license.txt",
    "allmrec_jax/assets/opt-nano/README.md": "cards/opt-nano.md",
    "allmrec_jax/assets/sbert-nano/README.md": "cards/sbert-nano.md",
    **{f"benchmarks/results/{path.name}": f"json/{path.name}" for path in (ROOT / "benchmarks/results").glob("*.json")},
}
"""Files outside of ``docs/`` that the site has too, and where."""

CODE = re.compile(r"(^(`{3,}|~{3,})[^\n]*\n.*?^\2[ \t]*$|`+[^`\n]+`+)", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^\$\$\n(.+?)\n\$\$$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<![\\$\w])\$([^$\n]+?)\$(?![$\w])")
LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")


def gather(out: Path) -> None:
    """Writes every page and file of the site into the folder ``out``, which is emptied first.

    Raises ``ValueError`` for a link that leaves ``docs/`` for something that the site has not.
    """
    shutil.rmtree(out, ignore_errors=True)
    pages = {path.relative_to(ROOT).as_posix(): path for path in sorted((ROOT / "docs").rglob("*")) if path.is_file()}
    places = {name: name.removeprefix("docs/").replace(".ipynb", ".md") for name in pages} | STAGED
    for name, place in places.items():
        source, target = ROOT / name, out / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix not in (".md", ".ipynb"):
            shutil.copyfile(source, target)
            continue
        text = source.read_text(encoding="utf-8")
        if source.suffix == ".ipynb":
            text = notebook_page(json.loads(text))
        text = readme_results.filled(name, text)
        if name.startswith("docs/results/"):
            text = f'<div class="results" markdown="1">\n\n{text}\n</div>\n'
        target.write_text(outside_code(relinked(text, name, places), equations), encoding="utf-8")


def outside_code(text: str, change: Any) -> str:
    """The text with ``change`` applied to what is not code."""
    parts = CODE.split(text)
    # Two groups to a match: the code itself and its fence.
    return "".join(part if place % 3 == 1 else change(part) for place, part in enumerate(parts) if place % 3 != 2)


def equations(text: str) -> str:
    """The text with its LaTeX as MathML, which browsers draw without a script."""

    def drawn(latex: str, display: str) -> str:
        return latex2mathml.converter.convert(" ".join(latex.split()), display=display).replace("\n", "")

    text = BLOCK.sub(lambda found: f"<div>{drawn(found[1], 'block')}</div>", text)
    return INLINE.sub(lambda found: drawn(found[1], "inline"), text)


def relinked(text: str, name: str, places: Mapping[str, str]) -> str:
    """The text of the repository's file ``name`` with its links as they are in the site."""

    def moved(found: re.Match[str]) -> str:
        link, anchor = found[2], found[3] or ""
        if re.match(r"[a-z]+:", link):
            return found[0]
        target = os.path.normpath(PurePosixPath(name).parent / link)
        if target not in places:
            raise ValueError(f"{name}: the site has no {target}; add it to STAGED or name it without a link")
        inside = os.path.relpath(places[target], PurePosixPath(places[name]).parent)
        return found[1] + inside + anchor + found[4]

    return outside_code(text, lambda part: LINK.sub(moved, part))


def notebook_page(notebook: Mapping[str, Any]) -> str:
    """A notebook as Markdown: its texts, its code, and below each piece of code what it gave."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            shown = output_html(output)
            if shown:
                parts.append(f'<div class="output">\n{shown}\n</div>')
    return "\n\n".join(parts) + "\n"


def output_html(output: Mapping[str, Any]) -> str:
    """One output of a notebook as HTML: a picture, a table, or what was printed."""
    data = {kind: "".join(text) for kind, text in output.get("data", {}).items()}
    if "image/png" in data:
        base64.b64decode(data["image/png"], validate=True)
        return f'<img alt="output" src="data:image/png;base64,{data["image/png"].strip()}">'
    if "text/html" in data:
        return re.sub(r"\n\s*\n", "\n", data["text/html"])
    text = "".join(output.get("text", ())) or data.get("text/plain", "")
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace("\n\n", "\n")
    return f"<pre>{escaped.rstrip()}</pre>" if text.strip() else ""


def main() -> int:
    """Gathers the pages; exit code 2 and one line where a link leads nowhere."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "docs")
    try:
        gather(parser.parse_args().out)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
