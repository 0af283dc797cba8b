"""A model's page: what it is, what it was measured to do, and pictures of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ks4diff.io.atomic import atomic_path, atomic_write_bytes
from ks4diff.products.model import RbModel
from ks4diff.training.measures import reliability, sets_of

PAGE = "card.md"
PICTURES = ("roc.png", "reliability.png", "efficiency.png")
NAMES = {"test": "unseen fields", "other_site": "the site left out"}


def write_page(folder: Path, model: RbModel, held: Mapping[str, Any]) -> None:
    """Write card.md and its pictures into a model's folder."""
    for name, figure in zip(
        PICTURES,
        (
            _roc(model, held),
            _reliability(model, held),
            _efficiency(model),
        ),
        strict=True,
    ):
        FigureCanvasAgg(figure)
        with atomic_path(folder / name) as temporary:
            figure.savefig(temporary, format="png", dpi=90, metadata={"Software": None})
    atomic_write_bytes(folder / PAGE, _text(model).encode())


def _axes(x: str, y: str):
    figure = Figure(figsize=(5.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    return figure, axes


def _roc(model: RbModel, held: Mapping[str, Any]) -> Figure:
    """Missed against false share, both logarithmic: the corner that matters."""
    figure, axes = _axes("share of bogus that pass", "share of added sources that are missed")
    for name, label in NAMES.items():
        sets = sets_of(*held[name])
        if not len(sets.added) or not len(sets.bogus):
            continue
        cuts = np.unique(np.r_[sets.added, sets.bogus, np.inf])
        false = 1 - np.searchsorted(np.sort(sets.bogus), cuts) / len(sets.bogus)
        missed = np.searchsorted(np.sort(sets.added), cuts) / len(sets.added)
        counts = f"{len(sets.added)} real, {len(sets.bogus)} bogus"
        axes.step(false, missed, where="post", label=f"{label}: {counts}")
    axes.axvline(0.01, color="grey", lw=0.8)
    axes.set(xscale="log", yscale="log", xlim=(5e-4, 1), ylim=(5e-4, 1))
    axes.legend(fontsize=8)
    axes.set_title(model.version, fontsize=9)
    return figure


def _reliability(model: RbModel, held: Mapping[str, Any]) -> Figure:
    """Share of real ones against mean score, at the prior."""
    figure, axes = _axes("mean score", f"share of real ones at a prior of {model.prior:g}")
    axes.plot([0, 1], [0, 1], color="grey", lw=0.8)
    for name, label in NAMES.items():
        sets = sets_of(*held[name])
        _, mean, share, _ = reliability(sets.added, sets.bogus, model.prior)
        axes.plot(mean, share, "o-", ms=4, label=label)
    axes.axvline(model.threshold, color="grey", ls=":", label="shipped threshold")
    axes.legend(fontsize=8)
    axes.set_title(model.version, fontsize=9)
    return figure


def _efficiency(model: RbModel) -> Figure:
    """Share of added sources that become alerts, against the S/N that the difference should show."""
    figure, axes = _axes("S/N to expect in the difference", "share of added sources that become alerts")
    for name, label in NAMES.items():
        bins = model.card["metrics"][name]["alerts"]["added"]
        rows = [(k.split("-"), v) for k, v in bins.items() if v["n"] and "-" in k]
        x = [np.sqrt(float(low) * min(float(high), 60.0)) for (low, high), _ in rows]
        value, low, high = (np.array([row[k] for _, row in rows]) for k in ("value", "low", "high"))
        error = np.maximum([value - low, high - value], 0)  # the card's digits are rounded
        axes.errorbar(x, value, yerr=error, fmt="o-", ms=4, label=label)
    axes.set(
        xscale="log",
        ylim=(0, 1.03),
        xticks=(5, 6, 8, 10, 20, 40),
        xticklabels=["5", "6", "8", "10", "20", "40"],
    )
    axes.minorticks_off()
    axes.legend(fontsize=8)
    axes.set_title(f"{model.version}, threshold {model.threshold:.3f}", fontsize=9)
    return figure


def _text(model: RbModel) -> str:
    card = model.card
    training = card["training"]
    lines = [
        f"# {card['name']}-{card['version']}",
        "",
        f"`{model.version}`, features `{card['vector']}` ({card['definitions']}), licence {card['licence']}.",
        f"A random forest of {card['trees']} trees ({card['nodes']} nodes), its scores calibrated:",
        f"`rb` is the probability to be real where {model.prior:.0%} of the candidates are. Where a share q",
        f"is, multiply its odds by q / (1 - q) / {model.prior / (1 - model.prior):.3g}.",
        "",
        "The trees see as many sources as bogus at every |S_corr|, and no law of how bright sources are.",
        "What they say is joined by Bayes' rule to the share of sources among unflagged candidates of an",
        "|S_corr|, when sources are equally many at each and bogus as many as in the harvest's own training",
        f"fields: {_prior(model)}.",
        "",
        f"Trained on {training['fitted']} candidates ({training['fitted_real']} real; few flagged bogus)",
        f"out of {training['rows']} ({training['real']} real) in {training['mpix']} Mpix of",
        f"{len(training['fields']['training'])} fields: {training['made_of']}. Training set",
        f"`{training['sha256']}`, seed {card['config']['seed']}. All nights of a field are in one fold; the",
        "unseen fields and those of one site (SSO) were never in training. Brackets hold 95 % intervals: of",
        "fields drawn again, of shares at least Wilson's, Poisson's of counts. A withheld score is missed.",
        "",
        "| threshold | rb |",
        "|---|---|",
        *(f"| {name.replace('_', ' ')} | {value:.4f} |" for name, value in card["thresholds"].items()),
        "",
    ]
    for name in ("test", "other_site"):
        lines += _measured(NAMES[name], card["metrics"][name])
    lines += _shipped(card["metrics"]["held_out"], card["metrics"]["across_training_fields"])
    lines += _others(card["metrics"])
    lines += [f"![{name}]({name})" for name in PICTURES]
    return "\n".join(lines) + "\n"


def _prior(model: RbModel) -> str:
    forest = model.forest
    near = [int(np.argmin(np.abs(forest.prior_x - score))) for score in (5.1, 6.0, 9.0, 20.0)]
    return ", ".join(f"{forest.prior_y[k]:.2g} at {forest.prior_x[k]:.1f}" for k in near)


def _number(row: Mapping[str, Any]) -> str:
    value, low, high = (row[k] for k in ("value", "low", "high"))
    if value is None:
        return "none"
    return f"{value:.4g} ({low:.3g} to {high:.3g})" if low is not None else f"{value:.4g}"


def _measured(title: str, part: Mapping[str, Any]) -> list[str]:
    telling = part["telling"]
    what = f"{telling['fields']} fields, {telling['nights']} field-nights, {telling['mpix']} Mpix"
    rows = [
        f"## {title[0].upper()}{title[1:]}: {what}",
        "",
        f"Unflagged candidates of |S_corr| 5 and more; {telling['bogus']} bogus.",
        "",
        "| | added sources | changes of the simulated sky |",
        "|---|---|---|",
    ]
    pair = (telling["added"], telling["sky"])
    rows += [f"| {key} | {pair[0][key]} | {pair[1][key]} |" for key in ("real", "withheld")]
    names = [key for key in pair[0] if isinstance(pair[0][key], dict)]
    rows += [
        f"| {key.replace('_', ' ')} | " + " | ".join(_number(p[key]) for p in pair) + " |" for key in names
    ]
    return [*rows, ""]


def _shipped(part: Mapping[str, Any], across: Mapping[str, Any]) -> list[str]:
    """Return what the shipped threshold does in all that was held out."""
    alerts, rules, across = part["alerts"], part["alerts_by_rules"], across["alerts"]
    rows = [
        "## At the shipped threshold, all held-out fields",
        "",
        f"{alerts['false_alerts']} false alerts in {alerts['mpix']} Mpix ({alerts['nights']} images):",
        f"{_number(alerts['per_full_chip'])} per full chip of 85 Mpix, flags applied; of fields drawn",
        "again {low:.3g} to {high:.3g}.".format(**alerts["per_full_chip_by_fields"]),
        f"The rules without a model (`rules-0` at 0.5): {_number(rules['per_full_chip'])}.",
        "",
        f"In the training fields, each scored by a forest that never saw it: {across['false_alerts']} in",
        f"{across['mpix']} Mpix, {_number(across['per_full_chip'])} per full chip.",
        "",
        "| sources, by the S/N to expect | n | become alerts | by rules |",
        "|---|---|---|---|",
    ]
    for group, label in (("added", "added, S/N "), ("sky", "")):
        for key, row in alerts[group].items():
            rows.append(f"| {label}{key} | {row['n']} | {_number(row)} | {_number(rules[group][key])} |")
    rows += ["", "| unflagged candidates | n | reach the threshold |", "|---|---|---|"]
    for group, word in (
        ("kind", ""),
        ("bogus", "bogus: "),
        ("added_score", "added, S_corr "),
        ("added_seeing", "added, FWHM/pix "),
    ):
        rows += [
            f"| {word}{key} | {row['n']} | {_number(row)} |" for key, row in part["slices"][group].items()
        ]
    return [*rows, ""]


def _others(metrics: Mapping[str, Any]) -> list[str]:
    """Return the other classifiers, on the same fields."""
    every = {"this forest": metrics["test"]["telling"]}
    every |= {"its answers alone": metrics["without_prior"]} if "without_prior" in metrics else {}
    every |= metrics.get("challengers", {})
    rows = ["## Others on the same unseen fields", "", "| | missed at false 1 % | AUC |", "|---|---|---|"]
    for name, one in every.items():
        missed, area = (_number(one["added"][key]) for key in ("missed_at_false_1pct", "auc"))
        rows.append(f"| {name.replace('_', ' ')} | {missed} | {area} |")
    doubts = metrics["doubted_labels"]
    return [
        *rows,
        "",
        "Labels doubted by forests that never saw their fields:",
        f"{doubts['real']} real below 0.1 and {doubts['bogus']} bogus above 0.9 of {doubts['of']}.",
        "",
    ]
