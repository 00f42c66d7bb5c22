"""Random geometries, layouts and dtypes through every function of fastcnn.functional, against the float64 formulas.

`pytest tests/fuzz` runs a few hundred cases; a night's run is
`pytest tests/fuzz --fuzz-cases 20000 --fuzz-seed $RANDOM`. A failure names the options that repeat it.
A new function needs an entry in tests/fuzz/ops.py.
"""
