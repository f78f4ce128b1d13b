"""``allmrec parity``: does this project compute what PyTorch computes?"""

import sys
from pathlib import Path

import click


@click.command(short_help="compare with PyTorch, component by component")
@click.option(
    "--official",
    type=click.Path(path_type=Path),
    help="Your clone of the official repository.  [stock PyTorch parts, and numbers recorded from the official code]",
)
@click.option("--selftest", is_flag=True, help="Also alter the product in each component: every row must turn red.")
@click.option("--component", "chosen", multiple=True, help="Only this row of the table; may be repeated.")
@click.option("--out", type=click.Path(path_type=Path), help="Where to write parity.json, parity.md and parity.png.")
def command(official: Path | None, selftest: bool, chosen: tuple[str, ...], out: Path | None) -> None:
    """Compare every component with its PyTorch counterpart, on the same weights and inputs, in float32.

    Trainings run whole, from a data set on disk to the parameters; the reference takes the draws that they made.
    With --official the code of your clone is imported and run. Prints a table; a row with a replaced piece of the
    reference is `partial`. Exits with 1 if a row fails, or if an altered one does not.

    \b
    Example:
      allmrec parity --official ../A-LLMRec --selftest --out runs/parity
    """
    from allmrec_jax.api.parity import compare_with_pytorch

    found = compare_with_pytorch(official, components=chosen, selftest=selftest, out=out)
    click.echo(found.markdown())
    for row in found.rows:
        if row.stood_in:
            click.echo(f"partial: {row.component} ({row.reference}, {row.device}): in place of {row.stood_in}")
    for device, precision in dict.fromkeys((row.device, row.precision) for row in found.rows):
        click.echo(f"matrix products of our side on the {device}: precision {precision}, float32 throughout")
    if found.altered:
        red = sum(one.red for one in found.altered)
        click.echo(f"self-test: {red} of {len(found.altered)} alterations turned their row red")
    if not found.holds:
        sys.exit(1)
