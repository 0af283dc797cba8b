"""The order of the stages, which error stops what, and the report of a run."""
