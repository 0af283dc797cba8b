"""``ks4diff efficiency``: inject sources, recover them, and tell how many come back and what else does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def efficiency(  # noqa: PLR0913 - a command's options are one each for people, not coupling
    images: Annotated[
        list[Path],
        typer.Argument(metavar="EXPOSURE... | SCIENCE REFERENCE", help="As of run, or as of subtract."),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder for the results; made if need be.")
    ],
    templates: Annotated[
        Path | None, typer.Option(metavar="STORE", help="Template store: the images are KMTNet exposures.")
    ] = None,
    calibrations: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Masters that ks4diff calibrate made.")
    ] = None,
    chips: Annotated[str, typer.Option(metavar="K,M,N,T", help="Chips of the exposures.")] = "K,M,N,T",
    rounds: Annotated[int, typer.Option(help="Rounds of injection into each chip.")] = 3,
    seed: Annotated[int, typer.Option(help="Of what is injected where.")] = 1,
    per_mpix: Annotated[float, typer.Option(help="Sources injected per Mpix and round.")] = 20.0,
    snr: Annotated[
        tuple[float, float], typer.Option(metavar="LOW HIGH", help="Their S/N on the science image's sky.")
    ] = (4.0, 80.0),
    config: Annotated[Path | None, typer.Option(metavar="FILE.toml", help="Settings of the stages.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads that share an image.")] = 2,
    threshold: Annotated[float | None, typer.Option(help="|S_corr| of a detection (5).")] = None,
    min_rb: Annotated[float | None, typer.Option(help="Real/bogus score that an alert needs.")] = None,
    gain: Annotated[float | None, typer.Option(help="Of a pair: electrons per count of both.")] = None,
    saturation: Annotated[float | None, typer.Option(help="Of a pair: saturation of both, counts.")] = None,
    zeropoint: Annotated[float | None, typer.Option(help="Of a pair: AB magnitude of one count.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print efficiency.json.")] = False,
) -> None:
    """Inject point sources into exposures, subtract, and write DIR/efficiency.json and DIR/efficiency.png.

    They say, by S/N and by magnitude, how many injected sources have a candidate, one without a rejecting
    flag, and an alert, with 95 % Wilson intervals; the bias of fluxes and positions; and how many false
    alerts a chip has at most, by threshold. Half of the sources lie anywhere, a quarter beside stars, a
    quarter on the light of galaxies of the template.

    "False alerts" are the candidates of the exposure without injections that have no rejecting flag and
    reach the threshold: at most, since what truly changed is among them. Those that injections bring about at
    other places are counted apart. Each exposure is taken by itself, so that "alone" and other flags of a
    visit are not raised. The inputs are never changed. The figure needs matplotlib: pip install
    'ks4diff[train]'. Exit code 4 when a chip failed, 2 when a pair cannot be used.

    Example: ks4diff efficiency raw/kmtc.20250207.004413.fits --templates store --out result
    """
    from ks4diff.io.charts import need_charts
    from ks4diff.numerics.pools import set_threads
    from ks4diff.pipeline.config import build_config
    from ks4diff.pipeline.efficiency import EfficiencyConfig
    from ks4diff.pipeline.rb import scoring_config
    from ks4diff.products.errors import ConfigError

    need_charts()
    settings = scoring_config(config, threshold=threshold, min_rb=min_rb)
    set_threads(threads)
    wanted = {"rounds": rounds, "inject": {"seed": seed, "per_mpix": per_mpix, "snr_range": list(snr)}}
    of_efficiency = build_config(EfficiencyConfig, wanted, where="options")
    if templates is not None:
        if {gain, saturation, zeropoint} != {None}:
            raise ConfigError("--gain, --saturation and --zeropoint are of a pair, not of KMTNet exposures")
        store = (templates, calibrations, chips.split(","))
        outcomes = _of_exposures(images, store, settings, of_efficiency)
    elif len(images) == 2:
        options = {"gain": gain, "saturation": saturation, "zeropoint": zeropoint}
        outcomes = [_of_pair(images, settings, of_efficiency, options)]
    else:
        raise ConfigError("without --templates, give exactly two images: SCIENCE and REFERENCE")
    _write(outcomes, out, settings, of_efficiency, as_json=as_json)
    if any(one.status == "failed" for one in outcomes):
        raise typer.Exit(4)


def _of_exposures(
    images: list[Path], store: tuple[Path, Path | None, list[str]], settings: Any, of_efficiency: Any
) -> list[Any]:
    from ks4diff.io.templates import TemplateStore
    from ks4diff.pipeline.efficiency import exposure_subjects, measured_chips
    from ks4diff.pipeline.run import Edges, exposures_of
    from ks4diff.products.errors import ConfigError, InputError
    from ks4diff.products.ids import CHIPS

    templates, calibrations, chips = store
    unknown = sorted(set(chips) - set(CHIPS))
    if unknown:
        raise ConfigError(f"--chips {','.join(unknown)}: the chips are {','.join(CHIPS)}")
    edges = Edges(templates=TemplateStore(templates), calibrations=calibrations)
    found = exposures_of(images)
    if not found:
        raise InputError(f"{', '.join(map(str, images))}: no complete KMTNet exposure")
    subjects = exposure_subjects(found, edges, settings, chips)
    return list(measured_chips(subjects, settings, of_efficiency))


def _of_pair(images: list[Path], settings: Any, of_efficiency: Any, options: dict[str, Any]) -> Any:
    from ks4diff.io.fits_image import read_chip
    from ks4diff.pipeline.efficiency import ChipOutcome, measure_chip, pair_subject

    science = read_chip(images[0], **options)
    reference = read_chip(images[1], gain=options["gain"], saturation=options["saturation"])
    subject = pair_subject(science, reference, settings)
    measured = measure_chip(subject, settings, of_efficiency)
    return ChipOutcome(
        exposure=subject.exposure, chip=subject.chip, status="ok", reason=None, measured=measured
    )


def _write(outcomes: list[Any], out: Path, settings: Any, of_efficiency: Any, *, as_json: bool) -> None:
    from ks4diff.io.atomic import atomic_write_bytes
    from ks4diff.io.charts import write_chart
    from ks4diff.pipeline.efficiency_report import efficiency_panels, efficiency_report
    from ks4diff.products.errors import ConfigError

    report = efficiency_report(outcomes, settings, of_efficiency)
    text = json.dumps(report, indent=2) + "\n"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror}") from None
    caption = f"{report['software']}, {report['model']}, rb >= {report['min_rb']:g}; 95 % Wilson intervals"
    write_chart(out / "efficiency.png", efficiency_panels(report), caption=caption)
    atomic_write_bytes(out / "efficiency.json", text.encode())
    if as_json:
        print(text, end="")
        return
    _tell(report)
    print(out / "efficiency.json")
    print(out / "efficiency.png")


def _tell(report: dict[str, Any]) -> None:
    """Print a line per chip and per bin of S/N."""
    for chip in report["chips"]:
        words = f"{chip['exposure']} {chip['chip']}: {chip['status']}"
        if chip["status"] == "ok":
            words += (
                f", {chip['injected']} injected, quality {chip['quality']}, "
                f"{chip['alerts_plain']} alerts without injections"
            )
        print(words + (f": {chip['reason']}" if chip["reason"] else ""))
    for one in report["snr"]["bins"]:
        if one["injected"]:
            alerts, upto = one["alerts"], "" if one["high"] is None else f"{one['high']:g}"
            bias = "-" if one["flux_bias"] is None else f"{100 * one['flux_bias']:+.1f} %"
            print(
                f"S/N {one['low']:g}-{upto}: {alerts['count']} of {one['injected']} are alerts "
                f"({100 * alerts['low']:.0f} to {100 * alerts['high']:.0f} %), flux bias {bias}"
            )
    half = report["magnitude"]["half"]
    if half is not None:
        print(f"half are alerts at {half:.2f} mag ({report['magnitude']['system']})")
