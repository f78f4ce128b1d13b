"""Keeps the results of a table for the documentation, with the commands that made them.

    python tools/keep_results.py runs/table1/movies movielens_table1 \\
        --command "allmrec prepare …" --command "allmrec experiment table1 …"

Writes ``benchmarks/results/NAME.json``: ``results.json``, which says on which machine it was made, and the commands. Of
absolute paths the last part is kept.
"""

import argparse
import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"


def kept(results: dict[str, Any], commands: list[str]) -> dict[str, Any]:
    """What is written."""
    return {**without_paths(results), "commands": commands}


def without_paths(value: Any) -> Any:
    """The same, with every absolute path cut to its last part."""
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


def main() -> None:
    """Reads the arguments and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="holds results.json")
    parser.add_argument("name", help="of the file, without .json")
    parser.add_argument("--command", action="append", required=True, help="that made the results; may be repeated")
    parser.add_argument("--out", type=Path, default=RESULTS, help="default: benchmarks/results")
    given = parser.parse_args()
    results = json.loads((given.directory / "results.json").read_text(encoding="utf-8"))
    text = json.dumps(kept(results, given.command), indent=1, ensure_ascii=False)
    (given.out / f"{given.name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
