"""Kernels for the CPU, compiled by Numba. Nothing here is imported before it is needed."""
