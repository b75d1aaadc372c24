"""One centre, several buffers: the fragments whose core forces tell how large a buffer must be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from aiida_mlip.kernel.fragments.fragment import Completion, Fragment, FragmentLimits, FrameTooSmallError
from aiida_mlip.kernel.fragments.frame import fragments_of_frame
from aiida_mlip.kernel.fragments.host import Host
from aiida_mlip.kernel.frames import Frames


def buffer_ladder(
    frames: Frames,
    row: int,
    atom: int,
    limits: FragmentLimits,
    buffers: Sequence[float],
    *,
    completion: Completion | Literal["auto"] = "auto",
    hosts: Sequence[Host] = (),
) -> dict[float, Fragment]:
    """Fragments around one atom at growing buffers, all completed in one way, each larger than the one before.

    :param row: of the frame.
    :param atom: the centre.
    :param limits: of the fragments; its buffer is replaced.
    :param buffers: Å, growing; one that gives no fragment, or no more atoms than the one before, is left out.
    :raises FrameTooSmallError: a frame smaller than the smallest fragment.
    :raises InvalidInputError: crystals without a host.
    """
    alone = np.zeros(int(frames.natoms[row]))
    alone[atom] = 1.0
    ladder: dict[float, Fragment] = {}
    way: Completion | Literal["auto"] = completion
    size = 0
    for buffer in buffers:
        try:
            made, _ = fragments_of_frame(
                frames,
                row,
                alone,
                replace(limits, buffer=buffer),
                threshold=0.5,
                most=1,
                completion=way,
                hosts=hosts,
            )
        except FrameTooSmallError:
            if not ladder:
                raise
            break
        if made and len(made[0]) > size:
            ladder[buffer] = made[0]
            way, size = made[0].completion, len(made[0])
    return ladder
