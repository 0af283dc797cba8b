"""Download stacks from an image service and add them to the store."""

from __future__ import annotations

import logging
import tomllib

from ks4diff.io.sia import TransferError, download, find_images
from ks4diff.io.templates import TemplateStore
from ks4diff.pipeline.ingest import TileOptions, add_tile
from ks4diff.products.errors import ConfigError, InputError, SkipChip
from ks4diff.products.template import TileRecord

log = logging.getLogger(__name__)


def fetch_tiles(
    store: TemplateStore,
    position: tuple[float, float],
    band: str,
    *,
    service: str | None = None,
    size_deg: float = 0.1,
    zeropoint: float | None = None,
    max_bytes: int = 4_000_000_000,
) -> list[TileRecord]:
    """Return the tiles made of the stacks that a service has at a position (RA, Dec), in one band.

    Raises
    ------
    ConfigError
        When no service is configured, or the store cannot be written.
    InputError
        When the service fails, or a stack is damaged or too large.
    SkipChip
        When the service has no stack there.

    """
    address = service or configured_service(store)
    try:
        images = find_images(address, *position, size_deg, band)
        if not images:
            raise SkipChip(f"{address} has no {band} image at {position[0]:g} {position[1]:g}")
        log.info("%d images at %s", len(images), address)
        options = TileOptions(band=band, zeropoint=zeropoint, origin="fetched")
        folder = store.pixel_path("")
        return [add_tile(store, download(image, folder, max_bytes), options) for image in images]
    except TransferError as error:
        raise InputError(f"{address}: {error}") from None
    except OSError as error:
        raise ConfigError(f"{store.root}: cannot be written ({error})") from None


def configured_service(store: TemplateStore) -> str:
    """Return the address in the store's store.toml.

    Raises
    ------
    ConfigError
        When there is none.

    """
    path = store.root / "store.toml"
    try:
        section = tomllib.loads(path.read_text(encoding="utf-8")).get("fetch", {})
    except FileNotFoundError:
        section = {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    address = section.get("service") if isinstance(section, dict) else None
    if not isinstance(address, str):
        raise ConfigError(f"no image service: say --service URL, or [fetch] service = ... in {path}")
    return address
