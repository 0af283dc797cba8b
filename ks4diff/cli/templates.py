"""``ks4diff templates``: the store of reference tiles."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(help="Keep reference tiles: add, build, fetch, find and check them.", no_args_is_help=True)

StoreArgument = Annotated[Path, typer.Argument(metavar="STORE", help="Folder of the template store.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
BandOption = Annotated[str | None, typer.Option(help="B, V, R or I; else the header's FILTER.")]
ZeropointOption = Annotated[float | None, typer.Option(help="AB magnitude of one count; else MAGZERO.")]


@app.command()
def add(  # noqa: PLR0913 - a command's options are one each for people, not coupling
    store: StoreArgument,
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Stacks with a WCS.")],
    band: BandOption = None,
    zeropoint: ZeropointOption = None,
    field: Annotated[str | None, typer.Option(help="Such as 2149.115-50; else told by position.")] = None,
    zp_map: Annotated[Path | None, typer.Option(metavar="FILE.npy", help="KS4 zero-point map.")] = None,
    issues: Annotated[Path | None, typer.Option(metavar="FILE.csv", help="KS4 field-issue flags.")] = None,
    hdu: Annotated[str | None, typer.Option(help="Number or name of the HDU.")] = None,
    copy: Annotated[bool, typer.Option("--copy", help="Copy the pixels into the store.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure stacks and add them to STORE, which is made if need be; their pixels stay where they are.

    Any survey's stack will do when it has a WCS and a zero point. Exit code 2 when a file cannot be added;
    the others are.

    Example: ks4diff templates add tiles ks4.2149.115-50.R.720sec.reduced.scaled.stack.fits
    """
    from ks4diff.io.templates import TemplateStore
    from ks4diff.io.tile_tables import read_issues
    from ks4diff.pipeline.ingest import TileOptions, add_tiles
    from ks4diff.products.errors import ConfigError, InputError

    if len(files) > 1 and (zp_map is not None or field is not None):
        raise ConfigError("--zp-map and --field belong to one FILE")
    options = TileOptions(
        band=band,
        zeropoint=zeropoint,
        field=field,
        zp_map=zp_map,
        issues=None if issues is None else read_issues(issues),
        copy=copy,
        hdu=hdu,
    )
    results, failed = [], 0
    for path, record in add_tiles(TemplateStore(store, create=True), files, options):
        if isinstance(record, InputError):
            failed += 1
            typer.echo(f"ks4diff: {record}", err=True)
            continue
        results.append(_summary(record))
        if not as_json:
            print(f"{path}: {_tile_line(results[-1])}")
    if as_json:
        print(json.dumps(results))
    if failed:
        raise typer.Exit(2)


@app.command("list")
def list_tiles(store: StoreArgument, band: BandOption = None, as_json: JsonOption = False) -> None:
    """List the tiles of STORE.

    Example: ks4diff templates list tiles --band R
    """
    from ks4diff.io.templates import TemplateStore

    cards = [card for card in TemplateStore(store).cards().values() if band in (None, card["band"])]
    if as_json:
        print(json.dumps([{name: card[name] for name in card if name != "wcs"} for card in cards]))
        return
    for card in cards:
        print(_tile_line(card))


@app.command()
def check(
    store: StoreArgument,
    quick: Annotated[bool, typer.Option("--quick", help="Sizes only, no checksums.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check that every tile's card, arrays and pixel file are there and unchanged; exit code 2 when not.

    Example: ks4diff templates check tiles
    """
    from ks4diff.io.templates import TemplateStore

    results = list(TemplateStore(store).check(checksums=not quick))
    if as_json:
        print(json.dumps([dataclasses.asdict(result) for result in results]))
    else:
        for result in results:
            print(f"{result.id}: {result.problem or 'ok'}")
    if any(result.problem for result in results):
        raise typer.Exit(2)


# negative declinations are no options
@app.command(context_settings={"ignore_unknown_options": True})
def cover(
    store: StoreArgument,
    where: Annotated[list[str], typer.Argument(metavar="RA DEC|EXPOSURE", help="Degrees, or a FITS file.")],
    band: BandOption = None,
    size: Annotated[float, typer.Option(help="Side of a square around the position, degrees.")] = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Say which tiles cover a position or an exposure, and what fraction of it.

    Example: ks4diff templates cover tiles 114.78 -50.0 --size 1
    """
    from ks4diff.io.templates import TemplateStore
    from ks4diff.pipeline.templates import cover as find
    from ks4diff.pipeline.templates import exposure_footprint
    from ks4diff.stages.footprint import position_footprint

    if len(where) == 1:
        footprint = exposure_footprint(Path(where[0]))
    else:
        footprint = position_footprint(*_position(where), size)
    tiles = TemplateStore(store)
    covers = find(tiles, footprint, band)
    bands = sorted({item.band for item in covers})
    total = {name: sum(item.gained for item in find(tiles, footprint, name)) for name in bands}
    if as_json:
        print(json.dumps({"tiles": [dataclasses.asdict(item) for item in covers], "covered": total}))
        return
    for item in covers:
        flagged = f"  flagged: {', '.join(item.issues)}" if item.issues else ""
        print(f"{item.id}  {item.band}  {item.field or '-'}  {item.fraction:.4f}{flagged}")
    print("; ".join(f"{name}: {share:.4f}" for name, share in total.items()) or "no template tile here")


@app.command()
def build(
    store: StoreArgument,
    exposures: Annotated[list[Path], typer.Argument(metavar="EXPOSURE...", help="FITS images with a WCS.")],
    band: Annotated[str, typer.Option(help="Band that the template serves.")],
    out: Annotated[Path, typer.Option(metavar="TILE.fits", help="Where to write the stack.")],
    zeropoint: ZeropointOption = None,
    scale: Annotated[float | None, typer.Option(help="Arcsec per pixel; else that of the exposures.")] = None,
    hdu: Annotated[str | None, typer.Option(help="Number or name of the HDU.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Combine exposures of one's own into a template and add it to STORE.

    Example: ks4diff templates build tiles visit1_*.fits --band R --out first-visit.fits
    """
    from ks4diff.io.templates import TemplateStore
    from ks4diff.pipeline.build_tile import BuildOptions, build_tile

    options = BuildOptions(band=band, zeropoint=zeropoint, scale_arcsec=scale, hdu=hdu)
    built = build_tile(TemplateStore(store, create=True), exposures, out, options)
    if as_json:
        parts = {"used": built.used, "left_out": built.left_out}
        print(json.dumps(_summary(built.record) | parts))
        return
    for name, how in built.used.items():
        print(f"{name}: placed by {how}")
    for name, reason in built.left_out.items():
        print(f"{name}: left out: {reason}")
    print(f"{out}: {_tile_line(_summary(built.record))}")


@app.command()
def fetch(  # noqa: PLR0913 - a command's options are one each for people, not coupling
    store: StoreArgument,
    ra: Annotated[float, typer.Option(help="Degrees.")],
    dec: Annotated[float, typer.Option(help="Degrees.")],
    band: Annotated[str, typer.Option("--filter", help="B, V, R or I.")],
    service: Annotated[
        str | None, typer.Option(metavar="URL", help="SIA service; else store.toml's.")
    ] = None,
    size: Annotated[float, typer.Option(help="Side of the square searched, degrees.")] = 0.1,
    zeropoint: ZeropointOption = None,
    max_gb: Annotated[float, typer.Option(help="Largest file accepted, GB.")] = 4.0,
    as_json: JsonOption = False,
) -> None:
    """Download the stacks at a position from an image service and add them to STORE.

    There is no default service: name it, or write `service = "URL"` under `[fetch]` in STORE/store.toml. A
    download that was cut goes on where it stopped.

    Example: ks4diff templates fetch tiles --ra 114.78 --dec -50 --filter R --service https://example.org/sia
    """
    from ks4diff.io.templates import TemplateStore
    from ks4diff.pipeline.fetch_tiles import fetch_tiles

    made = TemplateStore(store, create=True)
    options = {"size_deg": size, "zeropoint": zeropoint, "max_bytes": int(max_gb * 1e9)}
    records = fetch_tiles(made, (ra, dec), band, service=service, **options)
    if as_json:
        print(json.dumps([_summary(record) for record in records]))
        return
    for record in records:
        print(_tile_line(_summary(record)))
    print(f"{len(records)} tiles")


def _position(where: list[str]) -> tuple[float, float]:
    from ks4diff.products.errors import ConfigError

    try:
        ra, dec = (float(text) for text in where)
    except ValueError:
        raise ConfigError(f"{' '.join(where)[:80]!r} is neither RA DEC in degrees nor one file") from None
    return ra, dec


def _summary(record: Any) -> dict[str, Any]:
    names = (
        "id",
        "band",
        "field",
        "file",
        "zeropoint",
        "exptime",
        "mjd",
        "fwhm_pix",
        "saturation",
        "n_stars",
    )
    made = {name: getattr(record, name) for name in names}
    made |= {"shape": list(record.shape), "issues": list(record.issues)}
    made |= {"sigma_counts": record.noise.sigma, "corners": record.corners.tolist()}
    return made | {"covered": round(float(record.coverage.mean()), 5)}


def _tile_line(card: dict[str, Any]) -> str:
    fwhm = "-" if card["fwhm_pix"] is None else f"{card['fwhm_pix']:.2f} px"
    rows, columns = card["shape"]
    flagged = f"  flagged: {', '.join(card['issues'])}" if card["issues"] else ""
    return (
        f"{card['id']}  {card['band']}  {card['field'] or '-'}  {columns} x {rows}  ZP {card['zeropoint']:g}"
        f"  covered {card['covered']:.3f}  sigma {card['sigma_counts']:.4g}  FWHM {fwhm}"
        f"  {card['n_stars']} stars{flagged}"
    )
