"""How fragments are cut out of large frames, relaxed and judged, as a person writes it.

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
    relax: auto                  # the buffer, where something asks for it; or always, never
    relax_fmax_ev_per_ang: 0.15  # largest force that a relaxation leaves in the buffer
    relax_steps: 200             # at most
    buffer_novelty: 1.5          # grade that an atom of the buffer may have in any case, and else
    buffer_excess: 2.0           # so many times the largest grade that the fragment's atoms have in the parent
    survival: 0.05               # the centre's grade may change by so much, relatively
    fidelity: pbe                # level of theory that the potential is asked for; only where it knows several
    device: auto                 # where the potential runs
"""

from __future__ import annotations

from aiida_mlip.errors import InvalidInputError, ProtocolError
from aiida_mlip.io.fragments import FragmentKeys
from aiida_mlip.kernel.fragments.fragment import FragmentLimits


class FragmentSettings(FragmentKeys):
    """Settings of fragments; see the module's text."""

    def limits(self, *, where: str = "settings") -> FragmentLimits:
        """What the kernel asks of a fragment when it is cut.

        :raises ProtocolError: a value that the kernel does not take.
        """
        try:
            return self.carving()
        except InvalidInputError as error:
            raise ProtocolError(f"{where}.{error}") from error
