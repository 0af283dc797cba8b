"""Where the shared files are: alerts/, models/ and templates/, in a wheel or in a checkout."""

from __future__ import annotations

from pathlib import Path

from ks4diff.products.errors import InputError

_PACKAGE = Path(__file__).resolve().parent.parent


def shared_path(name: str) -> Path:
    """Return the absolute path of a shared file or folder, such as ``"alerts/schema"``.

    A wheel carries them inside the package; an editable install has none there, so the root of
    the checkout is looked at next.

    Parameters
    ----------
    name
        Path from the root of the checkout, with forward slashes.

    Raises
    ------
    InputError
        When this installation has no such file or folder.

    """
    for root in (_PACKAGE / "_share", _PACKAGE.parent):
        path = root / name
        if path.exists():
            return path
    raise InputError(f"{name}: not part of this installation of ks4diff ({_PACKAGE})")
