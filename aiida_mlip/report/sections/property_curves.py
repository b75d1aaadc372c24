"""Curves behind properties: equation of state, phonon bands, distribution functions, ... of all sources."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from aiida_mlip.report.content import Figure

#: Points of one line.
_MOST_POINTS: Final[int] = 400


@dataclass(frozen=True)
class _Kind:
    """A pair of arrays that make a line: their names without structure and temperature."""

    key: str
    x: str
    y: str
    title: str
    x_label: str
    y_label: str
    from_lowest: bool = False


_KINDS: Final[tuple[_Kind, ...]] = (
    _Kind("eos", "eos_volume_ang3_per_atom", "eos_energy_ev_per_atom", "Equation of state", "volume (Å³/atom)",
          "energy above the lowest (meV/atom)", from_lowest=True),
    _Kind("dos", "dos_frequency_thz", "dos_per_thz", "Phonon density of states", "frequency (THz)", "states (1/THz)"),
    _Kind("rdf", "rdf_radius_ang", "rdf", "Pair distribution", "r (Å)", "g(r)"),
    _Kind("adf", "adf_degrees", "adf_per_degree", "Angles", "angle (°)", "distribution (1/°)"),
    _Kind("msd", "msd_time_ps", "msd_ang2", "Mean squared displacement", "time (ps)", "MSD (Å²)"),
    _Kind("expansion", "expansion_temperature_k", "expansion_volume_ang3_per_atom", "Thermal expansion",
          "temperature (K)", "volume (Å³/atom)"),
)  # fmt: skip
_PREFIX: Final[re.Pattern[str]] = re.compile(r"^s(\d+)_(.+)$")
_TEMPERATURE: Final[re.Pattern[str]] = re.compile(r"^(.+?)_(\d+(?:\.\d+)?k)$")
_DIMER: Final[re.Pattern[str]] = re.compile(r"^dimer_([A-Za-z]+_[A-Za-z]+)_distance_ang$")


def figures(curves: Mapping[str, Any]) -> Iterator[Figure]:  # Any: ArrayData by source
    """One figure per structure and kind, a line per source; the reference comes last, dashed."""
    sources = sorted(curves, key=lambda name: (name == "reference", name))
    names = sorted({name for source in sources for name in curves[source].get_arraynames()})
    for name in names:
        structure, rest = _split(name)
        bare, temperature = _without_temperature(rest)
        at = f", structure {structure}" if structure else ""
        for kind in _KINDS:
            if bare == kind.x:
                y_name = name.replace(kind.x, kind.y, 1)
                yield from _line_figure(kind, f"{kind.title}{_at(temperature)}{at}", name, y_name, sources, curves)
        if rest == "bands_distance":
            yield from _bands(structure, at, sources, curves)
        if (found := _DIMER.match(rest)) is not None:
            pair = found.group(1).replace("_", "–")
            kind = _Kind("dimer", "", "", f"Dimer {pair}", "distance (Å)", "energy (eV)")
            y_name = name.replace("_distance_ang", "_energy_ev")
            yield from _line_figure(kind, kind.title, name, y_name, sources, curves)


def _line_figure(
    kind: _Kind, title: str, x_name: str, y_name: str, sources: Sequence[str], curves: Mapping[str, Any]
) -> Iterator[Figure]:
    series, uuids = [], []
    for place, source in enumerate(sources):
        names = curves[source].get_arraynames()
        if x_name not in names or y_name not in names:
            continue
        x, y = curves[source].get_array(x_name).reshape(-1), curves[source].get_array(y_name).reshape(-1)
        if x.shape != y.shape or not len(x):
            continue
        if kind.from_lowest and np.isfinite(y).any():
            y = 1000 * (y - np.nanmin(y))
        series.append(
            {"name": source.replace("_", " "), **_thinned(x, y), **_look(place, source), "markers": len(x) < 20}
        )
        uuids.append(curves[source].uuid)
    if series:
        yield Figure(
            key=f"{kind.key}-{x_name}",
            title=title,
            kind="lines",
            data={"x_label": kind.x_label, "y_label": kind.y_label, "series": series},
            alt=f"{title}: {kind.y_label} against {kind.x_label}, a line per source: {', '.join(map(_name, series))}.",
            uuids=tuple(uuids),
        )


def _bands(structure: str, at: str, sources: Sequence[str], curves: Mapping[str, Any]) -> Iterator[Figure]:
    """Phonon bands of all sources over one path; below zero is unstable."""
    prefix = f"s{structure}_" if structure else ""
    series: list[dict[str, Any]] = []
    uuids, ticks = [], None
    for place, source in enumerate(sources):
        node = curves[source]
        if {f"{prefix}bands_distance", f"{prefix}bands_frequency_thz"} - set(node.get_arraynames()):
            continue
        x, bands = node.get_array(f"{prefix}bands_distance"), node.get_array(f"{prefix}bands_frequency_thz")
        if not len(x) or bands.ndim != 2:
            continue
        scaled = x / x[-1] if x[-1] > 0 else x
        for band in range(bands.shape[1]):
            line = {"name": f"{source}, band {band}", "label": source.replace("_", " ") if band == 0 else ""}
            series.append({**line, **_thinned(scaled, bands[:, band]), **_look(place, source)})
        uuids.append(node.uuid)
        ticks = ticks or _path_ticks(node, prefix)
    if series:
        yield Figure(
            key=f"bands-{prefix}",
            title=f"Phonon bands{at}",
            kind="lines",
            data={
                "x_label": "wave vector",
                "y_label": "frequency (THz; below 0: unstable)",
                "x_range": [0, 1],
                "series": series,
                "horizontals": [{"name": "", "y": 0.0}],
                **({} if ticks is None else {"ticks": ticks, "verticals": [{"name": "", "x": x} for x in ticks["x"]]}),
            },
            alt=f"Phonon bands{at} along the path of high symmetry, potential and reference.",
            uuids=tuple(uuids),
            caption="Each source over its own path, scaled to the same length.",
        )


def _path_ticks(node: Any, prefix: str) -> dict[str, Any] | None:  # Any: ArrayData
    """Places and names of the points of high symmetry: pieces of so many points, two names each."""
    if {f"{prefix}bands_piece_lengths", f"{prefix}bands_labels"} - set(node.get_arraynames()):
        return None
    lengths = np.asarray(node.get_array(f"{prefix}bands_piece_lengths"), dtype=int)
    labels = [_symbol(label) for label in np.asarray(node.get_array(f"{prefix}bands_labels")).reshape(-1).tolist()]
    x = np.asarray(node.get_array(f"{prefix}bands_distance"), dtype=float)
    if not len(lengths) or lengths.sum() != len(x) or len(labels) != 2 * len(lengths) or x[-1] <= 0:
        return None
    ends = np.cumsum(lengths)
    places, names = [0.0], [labels[0]]
    for piece, end in enumerate(ends):
        name = labels[2 * piece + 1]
        following = labels[2 * piece + 2] if piece + 1 < len(ends) else name
        places.append(float(x[end - 1] / x[-1]))
        names.append(name if following == name else f"{name}|{following}")
    return {"x": places, "names": names}


def _symbol(label: Any) -> str:
    text = label.decode() if isinstance(label, bytes) else str(label)
    return "Γ" if text.upper() in ("G", "GAMMA", r"$\GAMMA$", r"\GAMMA") else text.strip("$")


def _split(name: str) -> tuple[str, str]:
    found = _PREFIX.match(name)
    return (found.group(1), found.group(2)) if found else ("", name)


def _without_temperature(name: str) -> tuple[str, str]:
    found = _TEMPERATURE.match(name)
    return (found.group(1), found.group(2)) if found and not name.startswith("expansion") else (name, "")


def _at(temperature: str) -> str:
    return f" at {temperature.removesuffix('k')} K" if temperature else ""


def _look(place: int, source: str) -> dict[str, Any]:
    return {"colour": 6, "style": "dashed"} if source == "reference" else {"colour": place, "style": "solid"}


def _thinned(x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    if len(x) > _MOST_POINTS:
        keep = np.unique(np.linspace(0, len(x) - 1, _MOST_POINTS).round().astype(int))
        x, y = x[keep], y[keep]
    return {"x": x, "y": y}


def _name(series: Mapping[str, Any]) -> str:
    return str(series["name"])
