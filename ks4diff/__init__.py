"""Transient detection for KMTNet: difference imaging against KS4 reference tiles."""

__version__ = "0.1.0"
