"""Triton kernels; installed as fastcnn.kernels."""
