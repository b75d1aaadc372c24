"""A fragment as spheres, seen in parallel projection: far atoms are paler and below."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from scipy.spatial import cKDTree

from aiida_mlip.kernel.fragments.fragment import Region
from aiida_mlip.report.drawing.canvas import legend

#: Colour of each region, as far apart in lightness as in hue.
REGIONS: Final[dict[int, tuple[str, str]]] = {
    Region.CORE: ("core", "#D55E00"),
    Region.TRUST: ("trust", "#0072B2"),
    Region.BUFFER: ("buffer", "#9fb4c0"),
    Region.CAP: ("cap", "#F0E442"),
}
#: Radius of a sphere over the covalent radius, and what counts as a bond.
_SPHERE: Final[float] = 0.5
_BOND: Final[float] = 1.2
#: How pale the farthest atoms are.
_HAZE: Final[float] = 0.6
#: In fragments of more atoms than this the buffer is translucent: it hides the core otherwise.
_MOST_OPAQUE: Final[int] = 60
_BUFFER_ALPHA: Final[float] = 0.3
_TILT: Final[tuple[float, float]] = (np.radians(-25.0), np.radians(18.0))


def view(positions: np.ndarray) -> np.ndarray:
    """(a, 3) positions turned so that the first two axes are the picture and the third points to the eye.

    A slightly tilted view along z: rows of a crystal do not hide each other.
    """
    turn, nod = _TILT
    about_y = np.array([[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(nod), -np.sin(nod)], [0, np.sin(nod), np.cos(nod)]])
    return np.asarray(positions, dtype=float) @ (about_x @ about_y).T


def fragment(axes: Any, data: Mapping[str, Any]) -> None:  # Any: matplotlib ships no strict types
    """Atoms (``positions``, ``numbers``, ``regions``) and the ``cell``, if any."""
    positions, numbers = np.asarray(data["positions"], dtype=float), np.asarray(data["numbers"], dtype=int)
    regions = np.asarray(data["regions"], dtype=int)
    seen = view(positions)
    depth = (seen[:, 2] - seen[:, 2].min()) / max(float(np.ptp(seen[:, 2])), 1e-9)
    if data.get("cell") is not None:
        _cell(axes, np.asarray(data["cell"], dtype=float), positions)
    _bonds(axes, seen, numbers, depth)
    _spheres(axes, seen, numbers, regions, depth)
    for region, (name, shade) in REGIONS.items():
        if (count := int((regions == region).sum())) > 0:
            axes.scatter([], [], color=shade, edgecolors="#333333", linewidths=0.6, s=40, label=f"{name} ({count})")
    _scale_bar(axes, seen)
    axes.set_aspect("equal")
    axes.axis("off")
    legend(axes, n_columns=4 if len(np.unique(regions)) < 4 else 2, handletextpad=0.2)


def _spheres(axes: Any, seen: np.ndarray, numbers: np.ndarray, regions: np.ndarray, depth: np.ndarray) -> None:
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Circle

    several = len(np.unique(numbers)) > 1
    rim = np.array(to_rgb("#222222"))
    for i in np.argsort(seen[:, 2], kind="stable"):
        haze = _HAZE * (1 - depth[i])
        fill = (1 - haze) * np.array(to_rgb(REGIONS[int(regions[i])][1])) + haze
        radius = _SPHERE * float(covalent_radii[numbers[i]])
        edge = (1 - haze) * rim + haze
        alpha = _BUFFER_ALPHA if regions[i] == Region.BUFFER and len(numbers) > _MOST_OPAQUE else 1.0
        axes.add_patch(
            Circle(
                tuple(seen[i, :2]),
                radius,
                facecolor=fill,
                edgecolor=edge,
                linewidth=0.7,
                zorder=2 + depth[i],
                alpha=alpha,
            )
        )
        if several and depth[i] > 0.5 and len(numbers) <= _MOST_OPAQUE:
            axes.annotate(
                chemical_symbols[numbers[i]], seen[i, :2], ha="center", va="center", fontsize=5.5,
                color="white" if regions[i] <= Region.TRUST else "#222222", zorder=2 + depth[i],
            )  # fmt: skip


def _bonds(axes: Any, seen: np.ndarray, numbers: np.ndarray, depth: np.ndarray) -> None:
    radii = covalent_radii[numbers]
    pairs = cKDTree(seen).query_pairs(2 * _BOND * float(radii.max()), output_type="ndarray")
    if not len(pairs):
        return
    i, j = pairs.T
    near = np.linalg.norm(seen[i] - seen[j], axis=1) < _BOND * (radii[i] + radii[j])
    for a, b in zip(i[near], j[near], strict=True):
        middle = float(depth[a] + depth[b]) / 2
        shade = str(round(0.85 - 0.5 * middle, 3))
        axes.plot(*seen[[a, b], :2].T, color=shade, linewidth=1.4, zorder=2 + min(depth[a], depth[b]) - 1e-3)


def _cell(axes: Any, cell: np.ndarray, positions: np.ndarray) -> None:
    """Edges of the periodic cell, about the atoms."""
    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=float)
    inside = np.linalg.pinv(cell)
    low = np.floor(np.min(positions @ inside, axis=0) + 1e-6) if np.abs(np.linalg.det(cell)) > 1e-9 else np.zeros(3)
    fractional = positions @ inside
    if (np.ptp(fractional, axis=0) <= 1.0 + 1e-6).all():
        low = fractional.min(axis=0) - (1 - np.ptp(fractional, axis=0)) / 2
    points = view((corners + low) @ cell)
    for a in range(8):
        for b in range(a + 1, 8):
            if np.abs(corners[a] - corners[b]).sum() == 1:
                axes.plot(*points[[a, b], :2].T, color="#888888", linewidth=0.8, linestyle="dashed", zorder=1)


def _scale_bar(axes: Any, seen: np.ndarray) -> None:
    """A bar of 2 Å (5 Å for large ones) below the atoms."""
    width = float(np.ptp(seen[:, 0]))
    length = 5.0 if width > 15 else 2.0
    x, y = float(seen[:, 0].min()), float(seen[:, 1].min()) - 1.9
    axes.plot([x, x + length], [y, y], color="#222222", linewidth=2.0, solid_capstyle="butt")
    axes.annotate(
        f"{length:.0f} Å", (x + length, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8
    )
