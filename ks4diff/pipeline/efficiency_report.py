"""What injected sources tell, as JSON values and as the panels of a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from statistics import NormalDist
from typing import Any

import numpy as np

from ks4diff.io.charts import Panel, Series
from ks4diff.pipeline.config import PipelineConfig
from ks4diff.pipeline.efficiency import ChipEfficiency, ChipOutcome, EfficiencyConfig, Unflagged
from ks4diff.pipeline.pair import SOFTWARE
from ks4diff.pipeline.rb import model_id, threshold
from ks4diff.pipeline.report import plain
from ks4diff.stages.inject import PLACES
from ks4diff.stages.recover import RECOVERED, Efficiency, efficiency

SCHEMA = "ks4diff.efficiency/1"
FULL_CHIP_MPIX = 9216 * 9232 / 1e6
BRIGHT_SNR = 8.0  # of injections by place
RB_STEPS = (*(round(0.05 * k, 2) for k in range(20)), 0.99)
SCORR_STEPS = (5.0, 5.5, 6.0, 7.0, 8.0, 10.0, 15.0, 20.0)
FEWEST = 5  # injected in a bin that tells where the efficiency is a half
DEFINITIONS = {
    "snr": "injected flux over the error of a PSF flux in the difference at that place",
    "detected": "a positive candidate within match_pix of the injected place",
    "unflagged": "such a candidate without a rejecting flag",
    "alerts": "such a candidate that is an alert: no rejecting flag, rb at least min_rb, quality not fail",
    "false_alerts.plain": (
        "unflagged candidates of both signs in the exposure without injections, rb at least the threshold: "
        "an upper limit of the false ones, as what truly changed counts too"
    ),
    "false_alerts.made": (
        "unflagged candidates of the exposure with injections, mean of the rounds, that lie neither at an "
        "injected place nor at any candidate of the exposure without: false ones that injections bring about"
    ),
    "alone": "each exposure by itself: flags that need other exposures of the visit are not raised",
}


def efficiency_report(
    outcomes: Sequence[ChipOutcome], config: PipelineConfig, of_efficiency: EfficiencyConfig
) -> dict[str, Any]:
    """Return efficiency.json: all chips together, and a line on each; what is not finite is null."""
    done = [one.measured for one in outcomes if one.measured is not None]
    rows = np.concatenate([one.rows for one in done] or [np.zeros(0, RECOVERED)])
    recover, sigmas = of_efficiency.recover, of_efficiency.recover.sigmas
    min_rb = threshold(config.score, config.min_rb)
    by_snr = efficiency(rows, rows["snr"], recover.snr_edges, sigmas)
    mags, system = _magnitudes(done)
    by_mag = efficiency(rows, mags, _mag_edges(mags, recover.mag_step), sigmas)
    bright = rows[rows["snr"] >= BRIGHT_SNR]
    places = {
        name: efficiency(bright, bright["place"], (k, k + 1), sigmas)[0] for k, name in enumerate(PLACES)
    }
    return plain(
        {
            "schema": SCHEMA,
            "software": SOFTWARE,
            "config_digest": config.digest(),
            "model": model_id(config.score),
            "min_rb": min_rb,
            "threshold": config.detect.threshold,
            "definitions": DEFINITIONS,
            "interval": 2 * NormalDist().cdf(sigmas) - 1,
            "settings": asdict(of_efficiency),
            "chips": [_line(one) for one in outcomes],
            "snr": {"half": half_efficiency(by_snr), "bins": [_bin(one) for one in by_snr]},
            "magnitude": {
                "system": system,
                "half": half_efficiency(by_mag),
                "bins": [_bin(one) for one in by_mag],
            },
            "places": {"least_snr": BRIGHT_SNR, **{name: _bin(one) for name, one in places.items()}},
            "false_alerts": _false_alerts(done, min_rb),
        }
    )


def _line(one: ChipOutcome) -> dict[str, Any]:
    """Return what is said of one chip by itself."""
    line = {name: getattr(one, name) for name in ("exposure", "chip", "status", "reason")}
    if one.measured is None:
        return line
    chip = one.measured
    facts = {name: getattr(chip, name) for name in ("mpix", "quality", "zeropoint", "seeds", "taken")}
    alerts = [int(chip.plain.alert.sum()), float(np.mean([made.alert.sum() for made in chip.made]))]
    return {**line, **facts, "injected": len(chip.rows), "alerts_plain": alerts[0], "alerts_made": alerts[1]}


def _bin(one: Efficiency) -> dict[str, Any]:
    values = {name: getattr(one, name) for name in one.__dataclass_fields__}
    return {
        name: value._asdict() if name in ("detected", "unflagged", "alerts") else value
        for name, value in values.items()
    }


def _magnitudes(done: Sequence[ChipEfficiency]) -> tuple[np.ndarray, str]:
    """Return (magnitudes of all rows, what they are): AB where every chip has a zero point."""
    calibrated = bool(done) and all(one.zeropoint is not None for one in done)
    mags = [
        (one.zeropoint if calibrated else 0.0) - 2.5 * np.log10(np.maximum(one.rows["flux"], 1e-30))
        for one in done
    ]
    return np.concatenate(mags or [np.zeros(0)]), "AB" if calibrated else "-2.5 log10 counts"


def _mag_edges(mags: np.ndarray, step: float) -> np.ndarray:
    if not len(mags):
        return np.zeros(1)
    low, high = np.floor(mags.min() / step), np.floor(mags.max() / step) + 1
    return step * np.arange(low, high + 1)


def half_efficiency(bins: Sequence[Efficiency]) -> float | None:
    """Return where the share of alerts crosses a half, between middles of bins; None where it does not."""
    told = [one for one in bins if one.injected >= FEWEST and np.isfinite(one.high)]
    for one, other in pairwise(told):
        a, b = one.alerts.fraction - 0.5, other.alerts.fraction - 0.5
        if a * b <= 0 and a != b:
            first, second = (0.5 * (e.low + e.high) for e in (one, other))
            return float(first + (second - first) * a / (a - b))
    return None


def _false_alerts(done: Sequence[ChipEfficiency], min_rb: float) -> dict[str, Any]:
    """Return counts per chip as it is, and per `FULL_CHIP_MPIX`, above each rb and each |S_corr|."""
    chips, mpix = max(len(done), 1), max(sum(one.mpix for one in done), 1e-9)

    def above(which: str, least: float) -> dict[str, float]:
        def count(one: Unflagged) -> int:
            kept = one.rb >= least if which == "rb" else (one.scorr >= least) & (one.rb >= min_rb)
            return int(kept.sum())

        of_plain = sum(count(one.plain) for one in done)
        of_made = float(sum(np.mean([count(made) for made in one.made]) for one in done))
        return {
            which: least,
            "plain": of_plain,
            "plain_per_chip": of_plain / chips,
            "plain_per_full_chip": of_plain / mpix * FULL_CHIP_MPIX,
            "made_per_chip": of_made / chips,
            "made_per_full_chip": of_made / mpix * FULL_CHIP_MPIX,
        }

    steps = sorted({*RB_STEPS, round(min_rb, 4)})
    return {
        "chips": len(done),
        "mpix": sum(one.mpix for one in done),
        "full_chip_mpix": FULL_CHIP_MPIX,
        "by_rb": [above("rb", least) for least in steps],
        "by_scorr": [above("scorr", least) for least in SCORR_STEPS],
    }


def efficiency_panels(report: dict[str, Any]) -> list[Panel]:
    """Return the figure's panels: efficiency by S/N and by magnitude, flux bias, and false alerts by rb."""
    snr, mag = report["snr"]["bins"], report["magnitude"]["bins"]
    middles = [_middle(one) for one in snr]
    bias = [_number(one["flux_bias"]) for one in snr]
    error = [_number(one["flux_bias_error"]) for one in snr]
    false = report["false_alerts"]["by_rb"]
    steps = [one["rb"] for one in false]
    return [
        Panel(
            title=f"recovered, of {sum(one.get('injected', 0) for one in report['chips'])} injected",
            x_label="S/N expected in the difference",
            y_label="efficiency",
            series=_curves(snr, middles),
            log_x=True,
            y_range=(-0.03, 1.03),
            levels=(0.5,),
        ),
        Panel(
            title="recovered",
            x_label=f"magnitude ({report['magnitude']['system']})",
            y_label="efficiency",
            series=_curves(mag, [0.5 * (one["low"] + one["high"]) for one in mag]),
            y_range=(-0.03, 1.03),
            levels=(0.5,),
        ),
        Panel(
            title="flux of unflagged ones, measured over injected",
            x_label="S/N expected in the difference",
            y_label="median - 1",
            series=[
                Series(
                    label="bias",
                    x=middles,
                    y=bias,
                    low=[b - e for b, e in zip(bias, error, strict=True)],
                    high=[b + e for b, e in zip(bias, error, strict=True)],
                )
            ],
            log_x=True,
            levels=(0.0,),
        ),
        Panel(
            title=f"unflagged, upper limit of false alerts; {report['false_alerts']['mpix']:.1f} Mpix",
            x_label="least rb",
            y_label="candidates per chip",
            series=[
                Series(label="without injections", x=steps, y=[one["plain_per_chip"] for one in false]),
                Series(label="made by injections", x=steps, y=[one["made_per_chip"] for one in false]),
            ],
            log_y=True,
        ),
    ]


def _middle(one: dict[str, Any]) -> float:
    """Return the middle of a bin of S/N in its logarithm; the open one ends at 1.6 times its start."""
    high = one["high"] if one["high"] is not None else 1.6 * one["low"]
    return float(np.sqrt(one["low"] * high))


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _curves(bins: list[dict[str, Any]], middles: list[float]) -> list[Series]:
    """Return the three shares by bin; intervals of the alerts only: others would cover them."""
    out = []
    for name in ("detected", "unflagged", "alerts"):
        curve = Series(label=name, x=middles, y=[_number(one[name]["fraction"]) for one in bins])
        if name == "alerts":
            limits = {end: [one[name][end] for one in bins] for end in ("low", "high")}
            curve = replace(curve, **limits)
        out.append(curve)
    return out
