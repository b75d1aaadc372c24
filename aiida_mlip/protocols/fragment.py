"""How fragments are cut out of large frames, as a person writes it.

::

    completion: auto             # crystal where the host is found, else disordered; or crystal, disordered, molecular
    core_radius_ang: 5.0         # copied as it is, never moved; usually the potential's cutoff
    buffer_ang: 3.0              # around the core
    trust_depth_ang: 3.0         # atoms so far from every cut may be trusted
    max_atoms: 200               # largest fragment that DFT is asked to do
    threshold: 1.5               # atoms whose novelty grade is above become centres, worst first
    max_fragments: 20            # of one frame
    min_distance_ang: {Si-Si: 1.8}   # or one number; left out: 0.7 times the sum of the covalent radii
    oxidation_states: {Mg: 2, O: -2} # left out: charges are not looked at (metals)
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from aiida_mlip.errors import InvalidInputError, ProtocolError
from aiida_mlip.kernel.fragments.fragment import FragmentLimits
from aiida_mlip.protocols.model import SpecModel


class FragmentSettings(SpecModel):
    """Settings of the cutting; see the module's text."""

    completion: Literal["auto", "crystal", "disordered", "molecular"] = "auto"
    core_radius_ang: float = Field(gt=0)
    buffer_ang: float = Field(default=3.0, ge=0)
    trust_depth_ang: float = Field(default=3.0, ge=0)
    max_atoms: int = Field(default=200, ge=1)
    threshold: float = Field(default=1.5, gt=0)
    max_fragments: int = Field(default=20, ge=1)
    min_distance_ang: float | dict[str, float] | None = None
    oxidation_states: dict[str, int] = Field(default_factory=dict)

    def limits(self, *, where: str = "settings") -> FragmentLimits:
        """The same for the kernel.

        :raises ProtocolError: a value that the kernel does not take.
        """
        try:
            return FragmentLimits(
                core_radius=self.core_radius_ang,
                buffer=self.buffer_ang,
                trust_depth=self.trust_depth_ang,
                max_atoms=self.max_atoms,
                min_distance_ang=self.min_distance_ang,
                oxidation_states=self.oxidation_states,
            )
        except InvalidInputError as error:
            raise ProtocolError(f"{where}.{error}") from error
