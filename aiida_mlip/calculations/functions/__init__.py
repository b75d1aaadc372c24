"""Calculation functions: each unwraps nodes, calls the kernel function of the same name and wraps its result."""
