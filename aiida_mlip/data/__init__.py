"""AiiDA data types (:class:`~aiida_mlip.data.dataset.DatasetData`, :class:`~aiida_mlip.data.potential.PotentialData`)."""
