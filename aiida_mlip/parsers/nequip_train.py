"""Parser of NequipTrainCalculation: potential, learning curves, and why a training ended."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from aiida import orm
from aiida.common.exceptions import NotExistent
from aiida.engine import ExitCode
from aiida.parsers import Parser

from aiida_mlip.data.potential import PotentialData
from aiida_mlip.data.training_jobs import config_of, engine_of, joint_method_of, levels_of, reference_energies_of
from aiida_mlip.errors import FileFormatError, MlipError
from aiida_mlip.io.documents import brief, clipped_lines, plain_text
from aiida_mlip.io.level_types import species_of_types
from aiida_mlip.io.nequip_config import METRICS_FILE, cutoff_of
from aiida_mlip.io.nequip_output import (
    Curves,
    Ending,
    data_statistics,
    is_diverged,
    read_metrics,
    says_out_of_time,
    why_ended,
)
from aiida_mlip.io.nequip_script import (
    HISTORY_DIR,
    PACKAGE_FILE,
    PACKAGE_LOG,
    STATUS_FILE,
    STDERR,
    kept_epoch,
    read_status,
)
from aiida_mlip.io.training_levels import TrainingLevels
from aiida_mlip.kernel.splits import Part, repetition
from aiida_mlip.protocols.train import TrainSettings, train_settings

#: Bytes of one file of text that are read: what a run says, not what it can be made to say.
_MOST_TEXT: Final[int] = 256 * 1024**2
#: Exit status of a shell's command from which on a signal has ended it.
_BY_SIGNAL: Final[int] = 128


class NequipTrainParser(Parser):
    """Attach what exists, then return the most specific exit code."""

    def parse(self, **_kwargs: Any) -> ExitCode | None:
        """Read metrics, output and package of one training."""
        try:
            names = set(self._names(""))
        except NotExistent:
            return self.exit_codes.ERROR_NO_OUTPUT
        if not names:
            return self.exit_codes.ERROR_NO_OUTPUT
        settings = train_settings(self.node.inputs.settings.get_dict())
        config = config_of(self.node)
        log = self._log()
        try:
            curves = self._curves()
        except (FileFormatError, ValueError) as error:
            return self.exit_codes.ERROR_OUTPUT_TRUNCATED.format(reason=_last_line(str(error)))
        ending = why_ended(
            log,
            curves,
            max_epochs=int(config["trainer"]["max_epochs"]),
            factor=settings.divergence_factor,
            epochs=settings.divergence_epochs,
        )
        if ending is Ending.INTERRUPTED and self._was_stopped_by_monitor(curves, settings):
            ending = Ending.DIVERGED
        status = read_status(self._text(STATUS_FILE))
        seen = data_statistics(log)
        summary = self._summary(settings, curves, ending, status, seen)
        self.out("summary", orm.Dict(summary))
        if len(curves):
            self.out("curves", _curves_node(curves))
        no_package = self._package(config, summary, settings)
        if no_package is not None and _was_interrupted(status):
            ending = Ending.INTERRUPTED if ending in (Ending.COMPLETED, Ending.STOPPED_EARLY) else ending
        return self._exit_code(ending, curves, summary, no_package, log, settings)

    def _was_stopped_by_monitor(self, curves: Curves, settings: TrainSettings) -> bool:
        """Whether a monitor saw it diverge: an epoch may come between its look and the end, and be better again."""
        if "monitors" not in self.node.inputs:
            return False
        factor, epochs = settings.divergence_factor, settings.divergence_epochs
        objective = curves.objective
        return any(is_diverged(objective[:n], factor=factor, epochs=epochs) for n in range(1, len(objective) + 1))

    # -- outputs -----------------------------------------------------------------------------------------------

    def _curves(self) -> Curves:
        paths = [f"{HISTORY_DIR}/{name}" for name in sorted(self._names(HISTORY_DIR))] + [METRICS_FILE]
        return read_metrics([self._text(path) for path in paths], source="metrics.csv")

    def _summary(
        self, settings: TrainSettings, curves: Curves, ending: Ending, status: dict[str, str], seen: dict[str, float]
    ) -> dict[str, Any]:
        """Plain numbers: epochs, best epoch, frames, ending."""
        parts = self.node.inputs.split.get_array(f"member_{settings.member}")
        summary: dict[str, Any] = {
            "ending": ending.value,
            "member": settings.member,
            "epochs": int(curves.epoch[-1]) + 1 if len(curves) else 0,
            "max_epochs": settings.max_epochs,
            "has_checkpoint": len(curves) > 0,
            "frames_train": int((parts == Part.TRAIN).sum()),
            "frames_val": int((parts == Part.VAL).sum()),
            "frames_seen": int(seen["num_frames"]) if "num_frames" in seen else None,
            "neighbors_mean": seen.get("num_neighbors_mean"),
            "learning_rate": settings.optimizer.learning_rate,
            "batch_size": settings.batch_size,
            "exit_status_train": _count(status.get("train", "")),
            "wall_seconds": _count(status.get("seconds", "")),
        }
        if (levels := levels_of(self.node)) is not None:
            summary.update(self._level_summary(settings, levels, parts, seen))
        kept = kept_epoch(status)
        best = curves.best if kept is None or (index := curves.index_of(kept)) is None else index
        if best is not None:
            summary["best_epoch"] = int(curves.epoch[best])
            summary["best"] = curves.at(best)
        return summary

    def _level_summary(
        self, settings: TrainSettings, levels: TrainingLevels, parts: np.ndarray, seen: dict[str, float]
    ) -> dict[str, Any]:
        """Frames per level of theory: rows of the split, frames of an epoch as they should be, frames seen."""
        names, target = self.node.inputs.dataset.column("fidelity"), levels.target
        rows = {name: int(((parts == Part.TRAIN) & (names == name)).sum()) for name in levels.fidelities}
        times = repetition(rows[target], sum(rows.values()) - rows[target], settings.target_share)
        counts = {}
        for index, name in enumerate(levels.fidelities):
            found = seen.get(f"num_frames_{index}")
            counts[name] = {
                "rows": rows[name],
                "frames_per_epoch": rows[name] * (times if name == target else 1),
                "frames_seen": None if found is None else int(found),
            }
        return {
            "target": target,
            "method": joint_method_of(self.node),
            "repetition": times,
            "fidelities": counts,
            "frames_val": int(((parts == Part.VAL) & (names == target)).sum()),
        }

    def _package(self, config: dict[str, Any], summary: dict[str, Any], settings: TrainSettings) -> str | None:
        """Attach the potential; why not, if there is none."""
        if PACKAGE_FILE not in self._names(""):
            return _last_line(self._text(PACKAGE_LOG)) or "nequip-package was not reached"
        try:
            with self.retrieved.base.repository.open(PACKAGE_FILE, "rb") as package:
                potential = PotentialData.from_package(
                    package,
                    engine=engine_of(self.node),
                    species=species_of_types(config["model_type_names"])[0],
                    cutoff_ang=cutoff_of(config),
                    metrics={"validation": summary.get("best", {}), "best_epoch": summary.get("best_epoch")},
                    source=f"{PACKAGE_FILE} of NequipTrainCalculation<{self.node.pk}>",
                    **self._energies(settings),
                )
        except (MlipError, OSError) as error:
            return brief(error)
        self.out("potential", potential)
        return None

    def _energies(self, settings: TrainSettings) -> dict[str, Any]:
        """Levels of theory and reference energies of the potential."""
        levels = levels_of(self.node)
        if levels is not None and levels.joint:
            return {
                "fidelities": levels.fidelities,
                "joint": True,
                "reference_energies": levels.reference_energies,
                "energy_shifts": levels.energy_shifts,
            }
        if levels is not None:
            return {
                "fidelities": [levels.target],
                "reference_energies": {levels.target: levels.reference_energies[levels.target]},
            }
        fidelity = self._fidelity(settings)
        return {"fidelities": [fidelity], "reference_energies": {fidelity: reference_energies_of(self.node, fidelity)}}

    def _fidelity(self, settings: TrainSettings) -> str:
        parts = self.node.inputs.split.get_array(f"member_{settings.member}")
        row = int(np.flatnonzero(parts == Part.TRAIN)[0])
        frame = self.node.inputs.dataset[row]
        return str(frame.fidelities[frame.fidelity[0]])

    # -- exit code -----------------------------------------------------------------------------------------------

    def _exit_code(
        self,
        ending: Ending,
        curves: Curves,
        summary: dict[str, Any],
        no_package: str | None,
        log: str,
        settings: TrainSettings,
    ) -> ExitCode | None:
        """The most specific code; none when all is well."""
        codes, epochs = self.exit_codes, summary["epochs"]
        seen, expected = _frames_seen(summary), _frames_expected(summary)
        if seen is not None and seen != expected:
            return codes.ERROR_FRAMES_MISMATCH.format(seen=seen, expected=expected)
        known = {
            Ending.NOT_FINITE: lambda: codes.ERROR_NOT_FINITE.format(epoch=epochs - 1),
            Ending.DIVERGED: lambda: codes.ERROR_DIVERGED.format(factor=settings.divergence_factor),
            Ending.OUT_OF_MEMORY: lambda: codes.ERROR_OUT_OF_MEMORY,
            Ending.WALLTIME: lambda: codes.ERROR_WALLTIME.format(epochs=epochs),
        }
        if ending in known:
            return known[ending]()
        if not len(curves):
            return codes.ERROR_NO_CHECKPOINT.format(reason=_last_line(log) or "no output at all")
        if no_package is not None and says_out_of_time(log):
            return codes.ERROR_WALLTIME.format(epochs=epochs)
        if ending is Ending.INTERRUPTED:
            return codes.ERROR_INCOMPLETE.format(epochs=epochs, reason=_last_line(log))
        if no_package is not None:
            return codes.ERROR_NO_PACKAGE.format(reason=no_package)
        if seen is None and "restart_folder" not in self.node.inputs:  # a restart does not count again
            return codes.ERROR_FRAMES_MISMATCH.format(seen="an unknown number of", expected=expected)
        return None

    # -- files -------------------------------------------------------------------------------------------------

    def _names(self, folder: str) -> list[str]:
        repository = self.retrieved.base.repository
        try:
            return list(repository.list_object_names(folder or None))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _text(self, name: str) -> str:
        try:
            with self.retrieved.base.repository.open(name, "rb") as handle:
                return plain_text(bytes(handle.read(_MOST_TEXT)).decode("utf-8", errors="replace"))
        except OSError:
            return ""

    def _log(self) -> str:
        options = [self.node.get_option(name) for name in ("output_filename", "scheduler_stdout", "scheduler_stderr")]
        return clipped_lines("\n".join(self._text(name) for name in [*options, STDERR] if name))


def _curves_node(curves: Curves) -> orm.ArrayData:
    node = orm.ArrayData()
    node.set_array("epoch", curves.epoch)
    for name, values in curves.values.items():
        node.set_array(name, values)
    return node


def _frames_seen(summary: Mapping[str, Any]) -> int | str | None:
    """Frames that the loader has seen, by level of theory where there are several; None: not known."""
    if "fidelities" not in summary or summary["frames_seen"] is None:
        seen: int | None = summary["frames_seen"]
        return seen
    return _by_level(summary, "frames_seen", total=summary["frames_seen"])


def _frames_expected(summary: Mapping[str, Any]) -> int | str:
    """Frames that the split has, repetitions counted."""
    if "fidelities" not in summary:
        return int(summary["frames_train"])
    total = sum(counts["frames_per_epoch"] for counts in summary["fidelities"].values())
    return _by_level(summary, "frames_per_epoch", total=total)


def _by_level(summary: Mapping[str, Any], key: str, *, total: int) -> str:
    parts = [
        f"{counts[key] if counts[key] is not None else '?'} {name}" for name, counts in summary["fidelities"].items()
    ]
    return f"{total} ({', '.join(parts)})"


def _count(text: str) -> int | None:
    """Whole number of a few digits; None for anything else."""
    return int(text) if re.fullmatch("[0-9]{1,15}", text) else None


def _was_interrupted(status: Mapping[str, str]) -> bool:
    """Whether the job did not come to its end: its script, or the packaging of the best checkpoint, was killed."""
    packaged = status.get("package", "137" if "best" in status else "0")
    return "train" not in status or (_count(packaged) or 0) >= _BY_SIGNAL


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
