"""What an evaluation's tables show, in a few sentences and in one line of the overview."""

from collections.abc import Mapping
from typing import Any

from allmrec_jax.report import facts
from allmrec_jax.report.tables import speeds
from allmrec_jax.report.words import difference_in_words, percent, share, signed


def summary(results: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluation in one line of the overview: A-LLMRec beside others, each time on the users of both.

    Returns:
        ``users``, of our system; ``ours``, its value and interval; ``against``, for SASRec and the best baseline the
        name and :class:`facts.Comparison`, ``None`` where there is none; ``winner`` and its value.
    """
    systems, best = results["systems"], results.get("best_baseline")
    ours = next((name for name in facts.OURS if name in systems), None)
    metric = facts.main_metric(results)
    contend = {name: row["all"][metric][0] for name, row in systems.items() if name not in facts.NO_CONTEST}
    winner = max(contend, key=lambda name: contend[name], default=None)
    against = [
        (name, facts.compare(results, ours, name) if ours and name and name != ours else None)
        for name in ("SASRec", best)
    ]
    return {
        "users": systems[ours]["all"]["n"] if ours else max(row["all"]["n"] for row in systems.values()),
        "ours": systems[ours]["all"][metric] if ours else None,
        "against": against,
        "winner": winner,
        "winner_value": contend[winner] if winner else None,
    }


def findings(results: Mapping[str, Any]) -> list[str]:
    """A few sentences that say what the tables show."""
    found = _speed(results) if facts.is_speed(results) else _accuracy(results)
    if not found:
        metric = facts.main_metric(results)
        contend = {name: row["all"] for name, row in results["systems"].items() if name not in facts.NO_CONTEST}
        if contend:
            winner = max(contend, key=lambda name: contend[name][metric][0])
            found.append(f"Best {facts.MAIN[metric]}: {winner}, {share(contend[winner][metric])}.")
    return found


def _speed(results: Mapping[str, Any]) -> list[str]:
    found = []
    for entry in speeds(results):
        sentence = f"{entry.system} answers {entry.users_per_second:,.1f} users a second"
        if entry.minutes is not None:
            sentence += f"; it was trained in {entry.minutes:.1f} minutes, the CF model not counted"
        found.append(f"{sentence}.")
    return found


def _accuracy(results: Mapping[str, Any]) -> list[str]:
    systems, base = results["systems"], facts.reference(results)
    best, metric = results.get("best_baseline"), facts.main_metric(results)
    name = next((name for name in facts.OURS if name in systems), "")
    ours = systems.get(name)
    label, found = facts.MAIN[metric], []
    if ours and metric == "hit@1":
        sentence = (
            f"{name} ranks the true next item first for {share(ours['all'][metric])} of {ours['all']['n']:,} users"
        )
        compared = facts.compare(results, name, base)
        if compared is not None:
            sentence += f"; {base} for {percent(compared.other)} of the same users"
        found.append(f"{sentence}.")
    for other in dict.fromkeys(other for other in ("SASRec", best) if other and other != name):
        if ours and (pair := facts.pair_of(results, name, other)):
            named = f"{other}, the best baseline here" if other == best else other
            found.append(f"Against {named}, user by user: {difference_in_words(pair, label)}.")
    variants = [(each, facts.pair_of(results, each, base)) for each in systems if base != "SASRec"]
    tested = [(each, pair) for each, pair in variants if pair and each in _ablations()]
    if tested:
        lower = [f"{each} ({signed(pair[0][0])})" for each, pair in tested if pair[0][2] < 0]
        found.append(
            f"Of {len(tested)} ablations, {len(lower)} fall below {base} beyond chance{': ' if lower else ''}"
            f"{', '.join(lower)}."
        )
    if ours and metric == "genre_hit":
        found.append(f"A genre that {name} names is among the user’s true ones for {share(ours['all'][metric])}.")
        if pair := facts.pair_of(results, name, base):
            found.append(f"Against {base}, user by user: {difference_in_words(pair, label)}.")
    if ours and "strict_hit@1" in ours["all"]:
        found.append(
            f"Asked to write a title, {name} names exactly one candidate for {share(ours['all']['valid_ratio'])} "
            f"and the right one for {share(ours['all']['strict_hit@1'])}."
        )
    cold = facts.compare(results, "A-LLMRec (SBERT)", "SASRec", "cold")
    if cold is not None:
        found.append(
            f"On cold items, A-LLMRec with item vectors from text is right for {percent(cold.value)} of "
            f"{cold.users:,} users; SASRec for {percent(cold.other)} of the same."
        )
    return found


def _ablations() -> set[str]:
    from allmrec_jax.experiments.rows import rows_of

    return {*rows_of("table8"), *rows_of("table9")}
