"""Arrays in, arrays out: the kernels and formulas, with no files, logs or units."""
