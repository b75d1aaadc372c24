"""Live monitors: what AiiDA looks at while a job runs."""

from __future__ import annotations

import tempfile
from pathlib import Path, PurePosixPath

from aiida import orm
from aiida.engine.processes.calcjobs.monitors import CalcJobMonitorAction, CalcJobMonitorResult
from aiida.transports import Transport

from aiida_mlip.errors import FileFormatError
from aiida_mlip.io.nequip_config import METRICS_FILE
from aiida_mlip.io.nequip_output import is_diverged, read_metrics


def training_diverged(
    node: orm.CalcJobNode, transport: Transport, factor: float = 100.0, epochs: int = 5
) -> CalcJobMonitorResult | None:
    """Stop a training whose validation error is NaN, or stayed above ``factor`` times its best for ``epochs`` epochs.

    The job's files are retrieved and parsed, and the parser's exit code stands.

    :param node: the running job.
    :param transport: open connection to its computer.
    :param factor: growth of the validation error that counts as divergence.
    :param epochs: how long it must last.
    """
    remote = str(PurePosixPath(node.get_remote_workdir()) / METRICS_FILE)
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / "metrics.csv"
        try:
            transport.getfile(remote, str(local))
            curves = read_metrics([local.read_text(encoding="utf-8", errors="replace")], source=remote)
        except (OSError, FileFormatError, ValueError):
            return None  # not written yet, or half written: look again next time
    if not is_diverged(curves.objective, factor=factor, epochs=epochs):
        return None
    return CalcJobMonitorResult(
        message=f"validation error {curves.objective[-1]:.4g} in epoch {int(curves.epoch[-1])}: the training diverged",
        action=CalcJobMonitorAction.KILL,
        override_exit_code=False,
    )
