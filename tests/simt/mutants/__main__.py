"""Runs the kernel of a library made by `build` on its case."""

import sys

from tests.simt.ground import Ground
from tests.simt.mutants import convolved

_, path, kernel = sys.argv
convolved(Ground(path), kernel)
print(f"{kernel}: done")
