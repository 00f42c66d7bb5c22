"""Triton's kernels: in Triton's interpreter (interpreted_*.py), from their PTX, and under torch.compile."""
