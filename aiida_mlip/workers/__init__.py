"""Programs that run on the compute node (``aiida-mlip-<verb>``). torch, nequip and LAMMPS live only here; no AiiDA."""
