"""A KMTNet-like night with known truth: sky, optics, detector, template."""
