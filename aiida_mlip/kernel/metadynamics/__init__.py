"""Biased dynamics: atomic-environment descriptors, hills on a hash grid, walls. Pure physics, no engine."""
