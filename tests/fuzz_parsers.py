"""Every parser of this package on the files of a job that was damaged: one stored job each, files as they come."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import fuzz_bundles as bundles
import fuzz_readers as files
import numpy as np
from fuzz_mutations import mutated

#: Longest message of an exit code.
LONGEST = 2000


@dataclass(frozen=True)
class Leftover:
    """A file that a job leaves.

    :param seeds: valid contents.
    :param temporary: it is not kept in the repository, see ``retrieve_temporary_list``.
    :param damage: makes a damaged one, where that takes more than changing its bytes.
    """

    seeds: Callable[[], Sequence[bytes]]
    temporary: bool = False
    archive: bool = False
    document: bool = False
    damage: Callable[[random.Random], bytes] | None = None

    def mutant(self, rng: random.Random) -> bytes:
        """Damaged content."""
        if self.damage is not None:
            return self.damage(rng)
        return mutated(rng, self.seeds(), archive=self.archive, document=self.document)


@dataclass(frozen=True)
class Job:
    """A parser, and what its job leaves.

    :param inputs: of the stored job.
    :param prepare: further contents of the stored job.
    """

    entry_point: str
    leftovers: Mapping[str, Leftover]
    inputs: Callable[[], dict[str, Any]] = dict
    prepare: Callable[[Any], None] = lambda _: None


def node_of(job: Job, computer: Any) -> Any:
    """The stored job."""
    from aiida import orm
    from aiida.common.links import LinkType

    node = orm.CalcJobNode(computer=computer, process_type=f"aiida.calculations:{job.entry_point}")
    node.set_option("output_filename", "train.out")
    node.set_option("scheduler_stderr", "_scheduler-stderr.txt")
    node.set_option("scheduler_stdout", "_scheduler-stdout.txt")
    node.set_option("resources", {"num_machines": 1, "num_mpiprocs_per_machine": 1})
    for name, value in job.inputs().items():
        value.store()
        node.base.links.add_incoming(value, link_type=LinkType.INPUT_CALC, link_label=name)
    job.prepare(node)
    return node.store()


def contents(job: Job, rng: random.Random) -> dict[str, bytes | None]:
    """Files of a damaged job: some changed, sometimes one left out; None: a folder of that name."""
    names = list(job.leftovers)
    found: dict[str, bytes | None] = {name: rng.choice(job.leftovers[name].seeds()) for name in names}
    for name in rng.sample(names, min(len(names), rng.choice((1, 1, 1, 2)))):
        found[name] = job.leftovers[name].mutant(rng)
    if (what := rng.random()) < 0.04:
        del found[rng.choice(names)]
    elif what < 0.06:
        found[rng.choice(names)] = None
    elif what < 0.08:
        found["_scheduler-stderr.txt"] = rng.choice((b"DUE TO TIME LIMIT", b"oom-kill", b"\xff\xfe\x00"))
    return found


def parse(job: Job, node: Any, given: Mapping[str, bytes | None], folder: Path) -> tuple[dict[str, Any], Any]:
    """Outputs and exit code for some files.

    :param folder: an empty one, for what is retrieved temporarily.
    """
    from aiida import orm
    from aiida.plugins import ParserFactory

    retrieved = orm.FolderData()
    for name, data in given.items():
        if name in job.leftovers and job.leftovers[name].temporary:
            path = folder / name
            path.parent.mkdir(exist_ok=True, parents=True)
            path.mkdir() if data is None else path.write_bytes(data)
        else:
            name = f"{name}/inside" if data is None else name
            retrieved.base.repository.put_object_from_bytes(data or b"", name)
    parser_class = ParserFactory(job.entry_point)

    class Fed(parser_class):
        """The parser with these files."""

        @property
        def retrieved(self) -> Any:
            return retrieved

    parser = Fed(node)
    code = parser.parse(retrieved_temporary_folder=str(folder))
    return dict(parser.outputs), code


#: A NUL in JSON; after another backslash it is text that only looks like one.
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


def check(job: Job, node: Any, outputs: Mapping[str, Any], code: Any) -> int:
    """The outputs can be stored and are those of the job, the message can be read; returns the exit status."""
    from aiida.engine import ExitCode
    from aiida.orm.implementation.utils import clean_value

    spec = node.process_class.spec()
    assert code is None or isinstance(code, ExitCode), code
    for label, output in outputs.items():
        problem = spec.outputs[label].validate(output)
        assert problem is None, problem
        text = json.dumps(clean_value(output.base.attributes.all), allow_nan=False, ensure_ascii=False)
        text.encode()
        assert not _NUL.search(text), "PostgreSQL takes no NUL"
        output._validate()
        for name in getattr(output, "get_arraynames", list)():
            assert not output.get_array(name).dtype.hasobject
    if code is None or not code.status:
        required = {label for label, port in spec.outputs.items() if port.required} - {"remote_folder", "retrieved"}
        assert required <= set(outputs), required
        return 0
    assert code.status in {known.status for known in node.process_class.exit_codes.values()}
    code.message.encode()
    assert "\x00" not in code.message
    assert len(code.message) < LONGEST, len(code.message)
    return int(code.status)


def run(job: Job, node: Any, rng: random.Random, folder: Path) -> tuple[int, dict[str, Any]]:
    """One damaged job parsed and checked; returns exit status and outputs."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    outputs, code = parse(job, node, contents(job, rng), folder)
    return check(job, node, outputs, code), outputs


def seeds_of(job: Job) -> dict[str, bytes]:
    """Files of a job that went well."""
    return {name: leftover.seeds()[0] for name, leftover in job.leftovers.items()}


# -- jobs --------------------------------------------------------------------------------------------------------------


def _dataset() -> Any:
    from aiida_mlip.data.dataset import DatasetData

    return DatasetData.from_frames(files.frames(), settings={"pbe": "f" * 64})


def _potential(**properties: Any) -> Any:
    from aiida_mlip.data.potential import PotentialData

    return PotentialData.from_package(files.packages()[0], **{"fidelities": ["pbe"], **properties})


def _labelling() -> dict[str, Any]:
    from aiida import orm

    batch = {"fidelity": "pbe", "spec": {"engine": "ase", "calculator": "x.Y"}, "settings": "f" * 64, "rows": [0, 1, 2]}
    return {"dataset": _dataset(), "batch": orm.Dict(batch)}


def _training() -> dict[str, Any]:
    from aiida import orm

    split = orm.ArrayData({"frame_id": files.frames().frame_id, "member_0": np.array([0, 0, 1], dtype=np.int8)})
    return {"dataset": _dataset(), "split": split, "settings": orm.Dict({"max_epochs": 3})}


def _configure(node: Any) -> None:
    from aiida_mlip.io.nequip_config import CONFIG_FILE

    config = "trainer: {max_epochs: 3}\nmodel_type_names: [Si, O]\ndata: {transforms: [{r_max: 4.5}]}\n"
    config += "training_module: {model: {per_type_energy_shifts: {Si: -1.0, O: -2.0}}}\n"
    node.base.repository.put_object_from_bytes(config.encode(), CONFIG_FILE)


def _baking() -> dict[str, Any]:
    from aiida import orm

    energies = {"lda": {"Si": 0.0, "O": 0.0}, "pbe": {"Si": -1.0, "O": -2.0}}
    joint = _potential(fidelities=["lda", "pbe"], joint=True, reference_energies=energies, energy_shifts=energies)
    return {"potential": joint, "fidelity": orm.Str("pbe")}


@cache
def _novelty() -> tuple[bytes, ...]:
    return tuple(files._npy(np.ones(n)) for n in (2, files.frames().n_atoms))


def _bare_frames() -> tuple[bytes, ...]:
    from aiida_mlip.io.shards import write_shard
    from aiida_mlip.kernel.labelling import without_labels

    return (write_shard(without_labels(files.frames())),)


_TEXT = Leftover(lambda: (files.LOG.encode(), b"Traceback\nValueError: no\n", b"Killed\n"))
_BAKED = {"status": "finished", "energy_difference_ev_per_atom": 1e-9, "force_difference_ev_per_ang": 1e-9}

JOBS: tuple[Job, ...] = (
    Job(
        "aiida_mlip.ase_label",
        {
            "output.json": Leftover(files._json(files.LABELLING), document=True),
            "labels.npz": Leftover(files.shards, archive=True),
            "train.out": _TEXT,
        },
        _labelling,
    ),
    Job(
        "aiida_mlip.explore",
        {
            "output.json": Leftover(files._json(files.RUNS), document=True),
            "trajectory.npz": Leftover(_bare_frames, temporary=True, archive=True),
            "series.npz": Leftover(files.series, temporary=True, archive=True),
            "grades.npz": Leftover(files.series, temporary=True, archive=True),
            "selected.npz": Leftover(_bare_frames, temporary=True, archive=True),
            "train.out": _TEXT,
        },
    ),
    Job(
        "aiida_mlip.metadynamics",
        {
            "output.json": Leftover(files._json(files.TRAJECTORIES), document=True),
            "trajectory.npz": Leftover(_bare_frames, temporary=True, archive=True),
            "series.npz": Leftover(files.series, temporary=True, archive=True),
            "bias/hills.npz": Leftover(files.series, temporary=True, archive=True),
            "train.out": _TEXT,
        },
    ),
    Job(
        "aiida_mlip.relax_fragments",
        {
            "output.json": Leftover(lambda: files._json(files.relaxations())(), document=True),
            "fragments.npz": Leftover(_bare_frames, temporary=True, archive=True),
            "novelty.npy": Leftover(_novelty, temporary=True),
            "train.out": _TEXT,
        },
        lambda: {"fragments": _dataset()},
    ),
    Job(
        "aiida_mlip.evaluate",
        {
            "output.json": Leftover(files._json(files.ERRORS, files.REFUSAL), document=True),
            "predictions.npz": Leftover(files.predictions, temporary=True, archive=True),
            "grades.npz": Leftover(files.grades, temporary=True, archive=True),
            "train.out": _TEXT,
        },
        lambda: {"dataset": _dataset(), "potential": _potential()},
    ),
    Job(
        "aiida_mlip.scan",
        {
            "output.json": Leftover(lambda: files._json(files.scan_answer())(), document=True),
            "candidates.npz": Leftover(_bare_frames, temporary=True, archive=True),
            "environments.npz": Leftover(files.series, temporary=True, archive=True),
            "fragments.npz": Leftover(_bare_frames, temporary=True, archive=True),
            "fragment_novelty.npy": Leftover(lambda: _novelty()[1:], temporary=True),
            "train.out": _TEXT,
        },
    ),
    Job(
        "aiida_mlip.bake",
        {
            "output.json": Leftover(files._json(_BAKED, files.REFUSAL), document=True),
            "baked.nequip.zip": Leftover(files.packages, temporary=True, archive=True),
            "train.out": _TEXT,
        },
        _baking,
    ),
    Job(
        "aiida_mlip.pw_bundle",
        {
            "results.tar": Leftover(bundles.results, damage=bundles.results_mutant),
            "begun": Leftover(lambda: bundles.BEGUN),
        },
        bundles.batch,
    ),
    Job(
        "aiida_mlip.nequip_train",
        {
            "logs/metrics.csv": Leftover(lambda: (files.METRICS.encode(),)),
            "model.nequip.zip": Leftover(files.packages, archive=True),
            "status.txt": Leftover(lambda: (files.STATUS.encode(),)),
            "train.out": Leftover(lambda: (files.LOG.replace("9.0", "2.0").encode(),)),
            "train.err": Leftover(lambda: (b"Traceback\nValueError: no\n", b"Killed\n")),
        },
        _training,
        _configure,
    ),
)
