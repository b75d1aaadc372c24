"""The report of a process: what it did, how good the result is, and the node every number comes from.

:mod:`~aiida_mlip.report.tree` reads the provenance, :mod:`~aiida_mlip.report.sections` makes
:mod:`~aiida_mlip.report.content` of it, :mod:`~aiida_mlip.report.drawing` draws its figures and
:mod:`~aiida_mlip.report.write` writes HTML and JSON.
"""
