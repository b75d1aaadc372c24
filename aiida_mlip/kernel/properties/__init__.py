"""Properties by which a potential is judged, each as two functions: the frames to compute, and values from the results.

Whoever computes the frames (a potential, an ASE calculator, DFT) does not matter: the same code serves all of them.
"""
