"""Training sets, real/bogus models and efficiency; beside `ks4diff.pipeline` and free to import it."""
