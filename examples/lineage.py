# %% [markdown]
# # Which DFT calculation does this number rest on?
#
# A simulation is run, a piece is cut out of it and labelled; then every atom of the piece is followed back, and every
# label forward. EMT stands in for DFT, so this takes seconds. It needs a profile with the codes that
# `aiida-mlip setup` makes: `verdi run examples/lineage.py`, or cell by cell in a notebook after `%load_ext aiida` and
# `%aiida`.

# %%
from __future__ import annotations

import numpy as np
from aiida import orm
from aiida.engine import run_get_node
from ase.build import bulk

from aiida_mlip.calculations.functions.fragment import carve_fragments
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.frame_index import FrameIndex
from aiida_mlip.data.lineage import frame_lineage, lineage
from aiida_mlip.data.taint import taint, taint_frame
from aiida_mlip.kernel.frames import from_ase
from aiida_mlip.workchains.explore import ExploreWorkChain
from aiida_mlip.workchains.label import LabelWorkChain

# %% [markdown]
# ## A simulation, a fragment, a label

# %%
teacher = "ase.calculators.emt.EMT"
spec = {
    "kind": "md",
    "forces": {"calculator": teacher},
    "md": {"timestep_fs": 2.0, "schedule": [{"n_steps": 10, "temperature_k": 300}]},
    "record_every": 10,
    "seed": 1,
}
outputs, explored = run_get_node(
    ExploreWorkChain,
    structures=DatasetData.from_frames(from_ase([bulk("Cu", cubic=True) * (4, 4, 4)])),
    spec=orm.Dict(spec),
    codes={"explore": orm.load_code("aiida-mlip-explore@localhost")},
)
simulated = outputs["dataset"]

# %% [markdown]
# A potential would say which atoms it does not know (`grades`); here we say that it is atom 10.

# %%
frames = simulated.frames()
novelty = np.full(frames.n_atoms, 0.5)
novelty[10] = 3.0
grades = orm.ArrayData({"frame_id": frames.frame_id, "novelty": novelty})
settings = orm.Dict({"core_radius_ang": 2.6, "buffer_ang": 2.4, "max_atoms": 120, "threshold": 1.5})
cut, carved = carve_fragments.run_get_node(simulated, grades, settings, copper=orm.StructureData(ase=bulk("Cu")))
labelled, labelling = run_get_node(
    LabelWorkChain,
    dataset=cut["fragments"],
    fidelities=orm.Dict({"emt": {"engine": "ase", "calculator": teacher}}),
    codes={"ase": orm.load_code("aiida-mlip-label@localhost")},
)
dataset = labelled["dataset"]

# %% [markdown]
# ## Back: one atom of the fragment
#
# The fragment has a frame id; an atom of it is a number. What is printed is the atom in the simulation, the process
# that ran it, and the calculation that made the label, with its row in there.

# %%
frame_id = dataset.frame_ids()[0]
found = frame_lineage(frame_id, atom=0)
print(f"atom {found.atom.index} ({found.atom.symbol}, {found.atom.region}) of {frame_id[:8]}")
print(f"was atom {found.atom.parent_atom} of the frame {found.parent.frame_id[:8]} of {found.parent.made_by.kind}")
for label in found.labels:
    print(f"{label.fidelity}: {label.calculation.kind}<{label.calculation.pk}>, row {label.row}")

# %% [markdown]
# The same for all atoms, with the index opened once: it finds the frame, no file is read.

# %%
with FrameIndex.open() as index:
    index.refresh()
    parents = [frame_lineage(frame_id, atom=atom, index=index).atom.parent_atom for atom in range(found.natoms)]
print(f"{len(set(parents))} atoms of the simulation are in the fragment")

# %% [markdown]
# ## Forward: what if that label is wrong?

# %%
wrong = taint_frame(frame_id, fidelity="emt")
print([f"{each.node.kind}<{each.node.pk}> {each.how}" for each in wrong.datasets])
behind_simulation = taint(next(node for node in explored.called if isinstance(node, orm.CalcJobNode)))
print(
    f"{behind_simulation.n_nodes} nodes rest on the simulation, {behind_simulation.labels} label calculation among them"
)

# %% [markdown]
# ## Any node

# %%
about = lineage(dataset)
print([f"{maker.kind}<{maker.pk}>" for maker in about.made_by], about.rests_on)
