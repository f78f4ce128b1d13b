"""``allmrec parity``: does this project compute what PyTorch computes?"""

import json
import sys
import warnings
from pathlib import Path

import click


@click.command(short_help="compare with PyTorch, component by component")
@click.option(
    "--official",
    type=click.Path(path_type=Path),
    help="Your clone of the official repository.  [stock PyTorch parts, and numbers recorded from the official code]",
)
@click.option("--selftest", is_flag=True, help="Also alter our side in each component: every row must turn red.")
@click.option("--component", "chosen", multiple=True, help="Only this row of the table; may be repeated.")
@click.option("--out", type=click.Path(path_type=Path), help="Where to write parity.json, parity.md and parity.png.")
def command(official: Path | None, selftest: bool, chosen: tuple[str, ...], out: Path | None) -> None:
    """Compare every component with its PyTorch counterpart, on the same weights and inputs, in float32.

    With --official the code of your clone is imported and run. Prints a table; a row with a replaced piece of the
    reference is `partial`. Exits with 1 if a row fails, or if an altered one does not.

    \b
    Example:
      allmrec parity --official ../A-LLMRec --selftest --out runs/parity
    """
    import jax

    from allmrec_jax.errors import UserError
    from allmrec_jax.fileio import atomic_path, write_text
    from allmrec_jax.outputs import Output
    from allmrec_jax.parity import compare
    from allmrec_jax.parity.golden import RECORDED, STEPS, Golden
    from allmrec_jax.parity.reference import COMPONENTS, Reference

    if unknown := sorted(set(chosen) - set(COMPONENTS)):
        raise UserError(f"unknown component {unknown[0]!r}; known: {', '.join(COMPONENTS)}")
    if out is not None:
        Output("parity report", signs=("parity.json", "parity.md")).claim(out)
    recorded: list[Reference] = [Golden(file) for file in RECORDED]
    if official is None:
        from allmrec_jax.parity.stock import Stock

        references: list[Reference] = [Stock(STEPS), *recorded]
    else:
        from allmrec_jax.parity.official import Official

        references = [Official(official, STEPS), recorded[1]]
    devices = [jax.devices("cpu")[0]]
    if jax.default_backend() != "cpu":
        devices.append(jax.devices()[0])

    warnings.filterwarnings("ignore", category=FutureWarning)  # the clone's autocast
    rows, altered = [], []
    for reference in references:
        for component in reference.components():
            if not chosen or component in chosen:
                for device in devices:
                    rows.append(compare.compare(reference, component, STEPS, device))
                    print(f"{rows[-1].verdict:8} {component} ({reference.name}, {device.platform})", file=sys.stderr)
    if selftest:
        for one in compare.selftest(references, [row for row in COMPONENTS if not chosen or row in chosen], STEPS):
            altered.append(one)
            print(f"{'red' if one.red else 'NOT RED':8} {one.component}: {one.alteration}", file=sys.stderr)

    print(compare.markdown(rows))
    for row in rows:
        if row.stood_in:
            print(f"partial: {row.component} ({row.device}): in place of {row.stood_in}")
    if altered:
        print(f"self-test: {sum(one.red for one in altered)} of {len(altered)} alterations turned their row red")
    if out is not None:
        write_text(out / "parity.json", json.dumps(compare.report(rows, altered, STEPS), indent=1) + "\n")
        write_text(out / "parity.md", compare.markdown(rows, every=True) + "\n")
        with atomic_path(out / "parity.png") as sibling:
            compare.plot(sibling, rows)
    if any(row.verdict == "failed" for row in rows) or not all(one.red for one in altered):
        sys.exit(1)
