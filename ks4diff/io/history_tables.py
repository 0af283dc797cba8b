"""The tables of the history; the same in SQLite and PostgreSQL."""

from __future__ import annotations

import sqlalchemy as sa

from ks4diff.products.sightings import MEASURED

VERSION = 1  # raised when a table changes: an older database is refused, never misread
METADATA = sa.MetaData()

META = sa.Table("history_meta", METADATA, sa.Column("version", sa.Integer, primary_key=True))
EXPOSURES = sa.Table(
    "exposures",
    METADATA,
    sa.Column("exposure", sa.String, primary_key=True),
    sa.Column("night", sa.String),
    sa.Column("site", sa.String),
    sa.Column("filter", sa.String),
    sa.Column("mjd", sa.Double, index=True),  # mid-exposure, UTC
    sa.Column("exptime", sa.Double),  # seconds
)
CHIPS = sa.Table(
    "chips",
    METADATA,
    sa.Column("exposure", sa.String, primary_key=True),
    sa.Column("chip", sa.String, primary_key=True),
    sa.Column("quality", sa.String, nullable=False),
    sa.Column("flux_unit", sa.String, nullable=False),
    sa.Column("zeropoint", sa.Double),
    sa.Column("seeing_arcsec", sa.Double),
    sa.Column("limiting_mag", sa.Double),
    sa.Column("ra", sa.Double),  # of the middle; this and the next six null without a WCS
    sa.Column("dec", sa.Double),
    sa.Column("radius", sa.Double),
    sa.Column("rows", sa.Integer),
    sa.Column("columns", sa.Integer),
    sa.Column("to_pixel", sa.LargeBinary),  # little-endian float64 [2, 15]
    sa.Column("limits", sa.LargeBinary),  # zlib of little-endian int16 [limit_rows, ...], millimagnitudes
    sa.Column("limit_rows", sa.Integer),
    sa.Column("root", sa.String),  # absolute folder of the run
    sa.Column("kept", sa.String),  # the kept difference, relative to it
)
CHIP_CELLS = sa.Table(
    "chip_cells",  # which HEALPix cells of order 7, nested, a chip may touch
    METADATA,
    sa.Column("cell", sa.BigInteger, primary_key=True),
    sa.Column("exposure", sa.String, primary_key=True),
    sa.Column("chip", sa.String, primary_key=True),
)
DETECTIONS = sa.Table(
    "detections",  # every candidate of every exposure, flagged or not
    METADATA,
    sa.Column("candid", sa.BigInteger, primary_key=True),
    sa.Column("exposure", sa.String, nullable=False, index=True),
    sa.Column("chip", sa.String, nullable=False),
    sa.Column("object_id", sa.String, index=True),
    sa.Column("is_primary", sa.Boolean, nullable=False),  # stands for the object in its exposure
    sa.Column("rejected", sa.Boolean, nullable=False),
    sa.Column("accepted", sa.Boolean, nullable=False),  # became an alert
    sa.Column("is_positive", sa.Boolean, nullable=False),
    sa.Column("flags", sa.BigInteger, nullable=False),
    sa.Column("cell", sa.BigInteger, nullable=False, index=True),  # HEALPix of order 16, nested; -1 unknown
    sa.Column("err_arcsec", sa.Double),
    *(sa.Column(name, sa.Double) for name in MEASURED),
)
OBJECTS = sa.Table(
    "objects",
    METADATA,
    sa.Column("object_id", sa.String, primary_key=True),
    sa.Column("ra", sa.Double, nullable=False),  # weighted mean of the primary detections
    sa.Column("dec", sa.Double, nullable=False),
    sa.Column("err_arcsec", sa.Double, nullable=False),  # per axis
    sa.Column("cell", sa.BigInteger, nullable=False, index=True),
    sa.Column("n_detections", sa.Integer, nullable=False),
    sa.Column("n_rejected", sa.Integer, nullable=False),
    sa.Column("n_alerts", sa.Integer, nullable=False),
    sa.Column("first_mjd", sa.Double, nullable=False),
    sa.Column("last_mjd", sa.Double, nullable=False),
    sa.Column("brightest_mag", sa.Double),
    sa.Column("brightest_mjd", sa.Double),
)
