"""Parser of BakeCalculation: the ordinary potential, and what went wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aiida.engine import ExitCode

from aiida_mlip.data.potential import PotentialData
from aiida_mlip.errors import MlipError
from aiida_mlip.io.bake import BAKED
from aiida_mlip.io.documents import brief
from aiida_mlip.io.evaluation import ANSWER
from aiida_mlip.parsers.evaluate import EvaluateParser


class BakeParser(EvaluateParser):
    """Read the answer and the package of ``aiida-mlip-evaluate --bake``."""

    def parse(self, **kwargs: Any) -> ExitCode | None:
        """Attach what exists, then return the most specific exit code."""
        folder = Path(kwargs.get("retrieved_temporary_folder", "."))
        if ANSWER not in self.retrieved.base.repository.list_object_names():
            return self._interrupted(ANSWER)
        try:
            answer = self._answer()
            if answer["status"] == "failed":
                return self._refused(answer)
            if not (folder / BAKED).exists():
                return self._interrupted(BAKED)
            potential = self._potential(folder / BAKED, answer)
        except KeyError as error:
            return self.exit_codes.ERROR_OUTPUT_UNREADABLE.format(message=f"{ANSWER}: key {error} is missing")
        except (MlipError, OSError) as error:
            return self.exit_codes.ERROR_OUTPUT_UNREADABLE.format(message=brief(error))
        self.out("potential", potential)
        return None

    def _potential(self, package: Path, answer: dict[str, Any]) -> PotentialData:
        """What the joint potential is at this level of theory."""
        joint: PotentialData = self.node.inputs.potential
        fidelity = self.node.inputs.fidelity.value
        keys = ("energy_difference_ev_per_atom", "force_difference_ev_per_ang")
        return PotentialData.from_package(
            package,
            engine=joint.engine,
            species=joint.species,
            cutoff_ang=joint.cutoff_ang,
            fidelities=[fidelity],
            reference_energies={fidelity: joint.reference_energies[fidelity]},
            metrics={"baked": {key: answer[key] for key in keys}},
            versions=joint.versions,
            source=f"{BAKED} of BakeCalculation<{self.node.pk}>",
        )
