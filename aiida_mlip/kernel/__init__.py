"""Physics and numerics: arrays in, frozen dataclasses out. No AiiDA, no torch."""
