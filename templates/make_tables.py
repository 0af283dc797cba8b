"""Write ks4-fields.csv and distortion.toml from the survey's own files in ../shared; users never need it.

    python templates/make_tables.py ../shared/realdata/jmk5040+KMTNet_ToO

Sources: github jmk5040/KMTNet_ToO, kmtnet_grid.fits (field centres) and kmtnet_global*.ahead (SCAMP
distortion solutions); ../shared/facts/kmtnet.md sections 2 and 5. Only rounded numbers are written.
"""

from __future__ import annotations

import sys
from pathlib import Path

from astropy.table import Table

HERE = Path(__file__).resolve().parent
CHIPS = {"K": "kk", "M": "mm", "N": "nn", "T": "tt"}
SITES = {"any": "kmtnet_global", "CTIO": "kmtnet_global_ctio", "SSO": "kmtnet_global_sso"}


def fields(source: Path) -> str:
    """Return the table of fields: degrees to 1e-6 and the number of dithers of the KS4 template."""
    table = Table.read(source / "kmtnet_grid.fits")
    lines = [
        "# KMTNet fields: line n is field n; dithers 0 = no KS4 template (the first 2749 have one).",
        "# Source: github jmk5040/KMTNet_ToO, kmtnet_grid.fits, cut to 1e-6 degrees, by make_tables.py.",
        "ra,dec,dithers",
    ]
    for row in table:
        # cut, not rounded: names come from the whole degrees, and 59.99999999999999 is called 059
        ra, dec = (f"{row[name]:.14f}"[:-8].rstrip("0").rstrip(".") for name in ("ra[deg]", "dec[deg]"))
        lines.append(f"{ra},{dec},{int(row['max_dith'])}")
    return "\n".join(lines) + "\n"


def distortion(source: Path) -> str:
    """Return the TOML of TPV coefficients: PV to 1e-8 (0.00005 arcsec at the corner), CD to 1e-13 deg/px."""
    lines = [
        "# TPV solutions of KMTNet chips, [site.chip]: CRPIX, CD matrix (row by row, degrees per pixel) and",
        '# PV1_n, PV2_n by n. "any" is the survey\'s site-independent solution; none was published for SAAO.',
        "# Source: kmtnet_global*.ahead of github jmk5040/KMTNet_ToO, rounded; written by make_tables.py.",
    ]
    for site, stem in SITES.items():
        for chip, suffix in CHIPS.items():
            cards = ahead(source / f"{stem}.{suffix}.ahead")
            lines += ["", f"[{site}.{chip}]"]
            lines.append(f"crpix = [{cards['CRPIX1']:.4f}, {cards['CRPIX2']:.4f}]")
            cd = [f"{cards[name]:.9e}" for name in ("CD1_1", "CD1_2", "CD2_1", "CD2_2")]
            lines.append(f"cd = [{', '.join(cd)}]")
            for axis in ("1", "2"):
                order = max(int(n[4:]) for n in cards if n.startswith(f"PV{axis}_"))
                values = [f"{cards.get(f'PV{axis}_{n}', 0.0):.8f}" for n in range(order + 1)]
                lines.append(f"pv{axis} = [{', '.join(values)}]")
    return "\n".join(lines) + "\n"


def ahead(path: Path) -> dict[str, float]:
    """Return the numeric cards of a SCAMP .ahead file."""
    cards = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        name, _, rest = line.partition("=")
        try:
            cards[name.strip()] = float(rest.split("/")[0])
        except ValueError:
            continue
    return cards


def main() -> None:
    """Write both tables beside this script."""
    source = Path(sys.argv[1])
    (HERE / "ks4-fields.csv").write_text(fields(source), encoding="utf-8")
    (HERE / "distortion.toml").write_text(distortion(source), encoding="utf-8")


if __name__ == "__main__":
    main()
