"""AiiDA WorkChains that develop machine-learned interatomic potentials.

Importing this package loads neither AiiDA nor torch: the numerics in :mod:`aiida_mlip.kernel` and the programs in
:mod:`aiida_mlip.workers` run where AiiDA is not installed.
"""

__version__ = "0.1.0"
