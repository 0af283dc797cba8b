"""The science, one stage a module: ``def stage(product, ..., config) -> product``."""
