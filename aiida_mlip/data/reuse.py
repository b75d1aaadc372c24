"""What the profile already knows: labels in other datasets, and finished calculations that no dataset holds yet."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from aiida import orm

from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.extras import DAMAGED
from aiida_mlip.kernel.frames import id_hex
from aiida_mlip.kernel.labelling import labelled_ids

#: What the description of a label process begins with; the settings hash follows.
SETTINGS = "label settings "


def find_labelled_datasets(
    wanted: Mapping[str, Collection[str]], *, exclude: Collection[str] = ()
) -> list[DatasetData]:
    """Datasets of the profile that hold labels which are wanted, as few as are needed, newest first.

    :param wanted: settings hash -> frame ids (32 hexadecimal digits).
    :param exclude: uuids of datasets not to look at.
    """
    missing = {settings: set(ids) for settings, ids in wanted.items() if ids}
    query = orm.QueryBuilder().append(DatasetData, project=["uuid", "attributes.fidelities"])
    query.order_by({DatasetData: {"id": "desc"}})
    found = []
    for uuid, fidelities in query.all():
        if uuid in exclude or not any(missing.values()):
            continue
        names = {
            name: entry["settings"]
            for name, entry in (fidelities or {}).items()
            if entry["labelled"] and missing.get(entry["settings"])
        }
        if not names:
            continue
        node = orm.load_node(uuid)
        useful = False
        for name, settings in names.items():
            hits = missing[settings] & set(id_hex(labelled_ids(node.filter(fidelity=name, labelled=True), name)))
            useful |= bool(hits)
            missing[settings] -= hits
        if useful:
            found.append(node)
    return found


def find_finished_calculations(settings: Collection[str], process_type: str) -> dict[tuple[str, str], int]:
    """Label processes of the profile that finished well, e.g. of a campaign that was interrupted.

    :param settings: settings hashes.
    :param process_type: entry point string of the process.
    :returns: (settings hash, frame id) -> pk; a frame id comes from the process label ``<fidelity>:<frame id>``.
    """
    if not settings:
        return {}
    query = orm.QueryBuilder().append(
        orm.WorkChainNode,
        filters={
            "process_type": process_type,
            "description": {"in": [SETTINGS + value for value in settings]},
            "attributes.exit_status": 0,
            "extras": {"!has_key": DAMAGED},
        },
        project=["description", "label", "id"],
    )
    query.order_by({orm.WorkChainNode: {"id": "asc"}})
    return {
        (description.removeprefix(SETTINGS), label.rpartition(":")[2]): pk for description, label, pk in query.all()
    }


def same_structure(first: orm.StructureData, second: orm.StructureData, *, tolerance: float = 1e-8) -> bool:
    """Whether two structures are the same atoms in the same order at the same places, to ``tolerance`` (Å)."""
    if [site.kind_name for site in first.sites] != [site.kind_name for site in second.sites]:
        return False
    if tuple(first.pbc) != tuple(second.pbc):
        return False
    return bool(
        np.allclose(first.cell, second.cell, rtol=0, atol=tolerance)
        and np.allclose(
            [site.position for site in first.sites], [site.position for site in second.sites], rtol=0, atol=tolerance
        )
    )
