"""What an evaluation's tables show, in a few sentences and in one line of the overview."""

from collections.abc import Mapping
from typing import Any

from allmrec_jax.report import facts
from allmrec_jax.report.words import difference_in_words, share, signed


def findings(results: Mapping[str, Any]) -> list[str]:
    """A few sentences that say what the tables show."""
    systems, base = results["systems"], facts.reference(results)
    ours, best, metric = systems.get("A-LLMRec"), results.get("best_baseline"), facts.main_metric(results)
    label, found = facts.MAIN[metric], []
    if ours and "hit@1" in ours["all"]:
        sentence = f"A-LLMRec ranks the true next item first for {share(ours['all']['hit@1'])} of users"
        if base in systems and base != "A-LLMRec":
            sentence += f"; {base} for {share(systems[base]['all']['hit@1'])}"
        found.append(sentence + ".")
    for other in dict.fromkeys(name for name in ("SASRec", best) if name):
        if ours and (pair := facts.pair_of(results, "A-LLMRec", other)):
            named = f"{other}, the best baseline here" if other == best else other
            found.append(f"Against {named}, user by user: {difference_in_words(pair, label)}.")
    variants = [(name, facts.pair_of(results, name, base)) for name in systems if base != "SASRec"]
    tested = [(name, pair) for name, pair in variants if pair and name in _ablations()]
    if tested:
        lower = [f"{name} ({signed(pair[0][0])})" for name, pair in tested if pair[0][2] < 0]
        found.append(
            f"Of {len(tested)} ablations, {len(lower)} fall below {base} beyond chance{': ' if lower else ''}"
            f"{', '.join(lower)}."
        )
    if ours and metric == "genre_hit":
        found.append(f"A genre that A-LLMRec names is among the user’s true ones for {share(ours['all'][metric])}.")
        if pair := facts.pair_of(results, "A-LLMRec", base):
            found.append(f"Against {base}, user by user: {difference_in_words(pair, label)}.")
    if ours and "strict_hit@1" in ours["all"]:
        found.append(
            f"Asked to write a title, A-LLMRec names exactly one candidate for {share(ours['all']['valid_ratio'])} "
            f"and the right one for {share(ours['all']['strict_hit@1'])}."
        )
    text, cf = systems.get("A-LLMRec (SBERT)"), systems.get("SASRec")
    if text and cf and "cold" in text and "cold" in cf:
        found.append(
            f"On cold items, A-LLMRec with item vectors from text is right for {share(text['cold']['hit@1'])}; "
            f"SASRec for {share(cf['cold']['hit@1'])}."
        )
    contend = [name for name, row in systems.items() if name not in facts.NO_CONTEST and metric in row["all"]]
    if not found and contend:
        winner = max(contend, key=lambda name: systems[name]["all"][metric][0])
        found.append(f"Best {label}: {winner}, {share(systems[winner]['all'][metric])}.")
    return found


def summary(results: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluation in one line of the overview."""
    systems, best = results["systems"], results.get("best_baseline")
    ours = next((name for name in ("A-LLMRec", "A-LLMRec, reduced") if name in systems), None)
    metric = facts.main_metric(results)
    valued = {name: row["all"][metric] for name, row in systems.items() if metric in row["all"]}
    contend = {name: value[0] for name, value in valued.items() if name not in facts.NO_CONTEST}
    winner = max(contend, key=lambda name: contend[name], default=None)
    against = {
        name: facts.pair_of(results, ours, name) if ours and name in systems and name != ours else None
        for name in ("SASRec", best)
        if name
    }
    return {
        "users": max(row["all"]["n"] for row in systems.values()),
        "ours": valued.get(ours or ""),
        "best": best,
        "best_value": valued.get(best or ""),
        "sasrec": valued.get("SASRec"),
        "against_sasrec": against.get("SASRec"),
        "against_best": against.get(best) if best else None,
        "winner": winner,
        "winner_value": valued.get(winner or ""),
    }


def _ablations() -> set[str]:
    from allmrec_jax.experiments.rows import STAGE1_ABLATIONS, STAGE2_ABLATIONS

    return {*STAGE1_ABLATIONS, *STAGE2_ABLATIONS}
