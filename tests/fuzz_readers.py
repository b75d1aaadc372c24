"""Every reader of files from elsewhere, and small valid files to begin with."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import fuzz_bundles as bundles
import numpy as np
from fuzz_mutations import gzipped, mutated

from aiida_mlip.errors import MlipError

#: Seconds of one input after which a reader counts as hung.
PATIENCE = 20.0


@dataclass(frozen=True)
class Target:
    """One reader.

    :param name: of the reader; the file is called so as well.
    :param read: is given a path.
    :param seeds: valid files.
    :param damage: makes a damaged one, where that takes more than changing its bytes.
    """

    name: str
    read: Callable[[Path], object]
    seeds: Callable[[], Sequence[bytes]]
    archive: bool = False
    document: bool = False
    damage: Callable[[random.Random], bytes] | None = None

    def mutant(self, rng: random.Random) -> bytes:
        """A damaged file."""
        if self.damage is not None:
            return self.damage(rng)
        return mutated(rng, self.seeds(), archive=self.archive, document=self.document)

    def accepts(self, path: Path, data: bytes) -> bool:
        """Whether the reader took the file; false where it refused it with an error that names it.

        :raises Exception: any other than ours: a crash.
        """
        path.write_bytes(data)
        try:
            self.read(path)
        except MlipError as error:
            message = str(error)
            assert path.name in message, f"the message does not name the file: {message[:300]}"
            assert len(message) < 20_000, f"a message of {len(message)} characters"
            return False
        return True


# -- seeds -------------------------------------------------------------------------------------------------------------


@cache
def frames():
    """Three small labelled frames."""
    from ase import Atoms

    from aiida_mlip.kernel.frames import digest, from_ase

    images = [
        Atoms("Si2", [[0, 0, 0], [1.35, 1.36, 1.37]], cell=np.eye(3) * 5.4, pbc=True),
        Atoms("SiO", [[0, 0, 0], [1.6, 0.1, 0]], cell=[[6, 0, 0], [0.3, 6, 0], [0, 0.2, 7]], pbc=[True, True, False]),
        Atoms("O", [[0.5, 0, 0]]),
    ]
    made = from_ase(images, generator="hand", group="g")
    n, a = len(made), made.n_atoms
    rng = np.random.default_rng(7)
    return made.with_columns(
        energy=rng.normal(size=n),
        forces=rng.normal(size=(a, 3)),
        stress=np.where(np.arange(n)[:, None, None] == 0, np.eye(3) * 0.01, np.nan),
        fidelity=np.zeros(n, dtype="<i2"),
        fidelities=("pbe",),
        label_uuid=np.tile(digest("job"), (n, 1)),
        label_row=np.arange(n, dtype="<i4"),
    )


@cache
def shards() -> tuple[bytes, ...]:
    from aiida_mlip.io.shards import write_shard

    bare = (
        frames()
        .take([1])
        .with_columns(region=np.array([0, 3], dtype="|u1"), parent_atom=np.array([4, -1], dtype="<i4"))
    )
    return write_shard(frames()), write_shard(bare)


@cache
def archives() -> tuple[bytes, ...]:
    from aiida_mlip.io.arrays import write_npz

    return (
    write_npz({"a": np.arange(6.0).reshape(2, 3), "run0.step": np.array(3), "text": np.array("grün"),
    "b": np.array([True])}),
        write_npz({}),
    )  # fmt: skip


@cache
def series() -> tuple[bytes, ...]:
    from aiida_mlip.io.arrays import write_npz

    return (write_npz({"step": np.arange(3), "energy": np.ones((3, 2)), "name": np.array(["a", "b", "c"])}),)


@cache
def arrays() -> tuple[bytes, ...]:
    values = (np.arange(5.0), np.arange(6, dtype="<i2").reshape(2, 3).T, np.array(["a", "bc"]))
    return tuple(_npy(value) for value in values)


def _npy(value: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, value, allow_pickle=False)
    return buffer.getvalue()


@cache
def grades() -> tuple[bytes, ...]:
    from aiida_mlip.io.arrays import write_npz
    from aiida_mlip.kernel.uncertainty.grades import fit_grades

    features = np.random.default_rng(1).normal(size=(60, 2))
    return (write_npz(fit_grades(features, np.repeat([8, 14], 30)).arrays()),)


@cache
def predictions() -> tuple[bytes, ...]:
    from aiida_mlip.io.evaluation import write_predictions
    from aiida_mlip.kernel.metrics import Predictions

    value = frames()
    made = Predictions(value.energy, value.forces, value.stress, np.zeros(len(value), dtype="|u1"))
    part = np.array([0, 1, 2], dtype="|i1")
    return write_predictions(made, part), write_predictions(made, part, np.ones(value.n_atoms))


@cache
def packages() -> tuple[bytes, ...]:
    import zipfile

    metadata = (
        "atom_types: {0: Si, 1: O}\navailable_models: [eager]\npackage_version_id: 2\nversions: {nequip: 0.19.1}\n"
    )
    config = "training_module:\n  model: &a {_target_: x, model: {r_max: 4.5, model_dtype: float64}}\ndata: [*a, 1]\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in {"package_metadata.txt": metadata, "config.yaml": config, "eager_model.pkl": "N."}.items():
            archive.writestr(f"m/model/{name}", text)
        archive.writestr("m/.data/version", "6")
    return (buffer.getvalue(),)


@cache
def extxyz() -> tuple[bytes, ...]:
    from aiida_mlip.io.extxyz import write_extxyz

    text = io.StringIO()
    write_extxyz(frames(), text)
    foreign = (
        '2\nLattice="5 0 0 0 5 0 0 0 5" Properties=species:S:1:pos:R:3:force:R:3 free_energy=-3.5 note={a b} '
        'list=[1, 2] virial="1 0 0 0 1 0 0 0 1" stress=\'1 0 0 0 1 0 0 0 1\' pbc="T F T" flag label="a \\" b"\n'
        "Si 0 0 0 .1 .2 .3\nO 1 1 1 0 0 0\n"
    )
    numbers = "1\nProperties=Z:I:1:pos:R:3:region:I:1:parent_atom:I:1 energy=1\n14 0 0 0 3 -1\n\n"
    return text.getvalue().encode(), foreign.encode(), numbers.encode()


@cache
def dumps() -> tuple[bytes, ...]:
    head = "ITEM: TIMESTEP\n0\nITEM: NUMBER OF ATOMS\n2\n"
    plain = f"{head}ITEM: BOX BOUNDS pp pp ff\n0 5\n0 5\n-1 6\nITEM: ATOMS id element x y z\n1 Si 0 0 0\n2 O 1 1 1\n"
    tilted = (
        f"{head}ITEM: BOX BOUNDS xy xz yz pp pp pp\n0 5.5 .5\n0 5 0\n0 5 0\n"
        "ITEM: ATOMS id type xs ys zs\n1 1 0 0 0\n2 2 .5 .5 .5\n"
    )
    return (plain * 2).encode(), tilted.encode()


@cache
def data_files() -> tuple[bytes, ...]:
    text = (
        "title\n\n2 atoms\n2 atom types\n0 5 xlo xhi\n0 5 ylo yhi\n0 5 zlo zhi\n0.5 0 0 xy xz yz\n\n"
        "Masses\n\n1 28.085 # Si\n2 16\n\nAtoms # atomic\n\n1 1 0 0 0\n2 2 1 1 1\n\nVelocities\n\n1 0 0 0\n2 0 0 0\n"
    )
    return (text.encode(),)


def _by_ase(kind: str) -> bytes:
    import tempfile

    import ase.io

    images = [frames().to_ase(0)]
    images[0].info.clear()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        ase.io.write(str(path), images if kind == "traj" else images[0], format=kind)
        return path.read_bytes()


@cache
def pw_outputs() -> tuple[bytes, ...]:
    """Outputs of pw.x: a relaxation of two steps, and a single point that did not converge."""
    bohr = 5.4 / 0.529177210903
    head = f"""
     Program PWSCF v.6.7MaX starts on  1Jan2026 at 10: 0: 0

     bravais-lattice index     =            0
     lattice parameter (alat)  =      {bohr:.4f}  a.u.
     celldm(1)=  {bohr:.6f}  celldm(2)=   0.000000  celldm(3)=   0.000000
     unit-cell volume          =    {bohr**3:.4f} (a.u.)^3
     number of atoms/cell      =            2
     number of atomic types    =            1

     crystal axes: (cart. coord. in units of alat)
               a(1) = (   1.000000   0.000000   0.000000 )
               a(2) = (   0.000000   1.000000   0.000000 )
               a(3) = (   0.000000   0.000000   1.000000 )

     atomic species   valence    mass     pseudopotential
        Si             4.00    28.08550     Si( 1.00)

   Cartesian axes

     site n.     atom                  positions (alat units)
         1           Si  tau(   1) = (   0.0000000   0.0000000   0.0000000  )
         2           Si  tau(   2) = (   0.2500000   0.2500000   0.2500000  )

     number of k points=     1
                       cart. coord. in units 2pi/alat
        k(    1) = (   0.0000000   0.0000000   0.0000000), wk =   2.0000000
"""
    label = """
!    total energy              =     -15.80000000 Ry
     convergence has been achieved in   6 iterations

     Forces acting on atoms (cartesian axes, Ry/au):

     atom    1 type  1   force =     0.00100000    0.00000000    0.00000000
     atom    2 type  1   force =    -0.00100000    0.00000000    0.00000000

     Total force =     0.001000     Total SCF correction =     0.000001

     Computing stress (Cartesian axis) and pressure

          total   stress  (Ry/bohr**3)                   (kbar)     P=       -1.00
  -0.00000800   0.00000000   0.00000000           -1.18        0.00        0.00
   0.00000000  -0.00000800   0.00000000            0.00       -1.18        0.00
   0.00000000   0.00000000  -0.00000800            0.00        0.00       -1.18

"""
    step = """     Entering Dynamics:    iteration =     1
                           time      =    0.0010 pico-seconds

ATOMIC_POSITIONS (angstrom)
Si            0.0010000000        0.0000000000        0.0000000000
Si            1.3490000000        1.3500000000        1.3500000000

     kinetic energy (Ekin) =           0.00100000 Ry
     temperature           =          50.00000000 K
     total cpu time spent up to now is       10.5 secs
"""
    end = "     End of molecular dynamics calculation\n     PWSCF        :      1.00s CPU      2m 1.50s WALL\n"
    failed = head + "     convergence NOT achieved after   2 iterations: stopping\n"
    return tuple(text.encode() for text in (head + label + step + label + end, failed, head + label))


METRICS = (
    "epoch,lr-Adam,step,val0_epoch/forces,val0_epoch/weighted_sum\n"
    ",0.01,0,,\n0,,3,0.5,0.5\n,0.01,4,,\n1,,7,0.4,0.4\n,0.01,8,,\n2,,11,0.3,0.3\n"
)
LOG = (
    "[x][nequip.data.stats_manager][INFO] - [rank: 0] num_frames: 9.0\n[x][nequip.data.stats_manager] num_atoms: 30\n"
    "[x][nequip.data.stats_manager][INFO] num_neighbors_mean: 14.5\nTRAIN RUN END\n"
)
STATUS = "train 0\nseconds 5\nbest checkpoints/best.ckpt\npackage 0\n"
ERRORS = {
    "status": "finished",
    "errors": {"all": {"n_frames": 3, "force_rmse_ev_per_ang": 0.1, "energy_bias_ev_per_atom": None}},
    "fidelities": {"pbe": {"n": 3}},
    "failures": [{"frame": 1, "failure": "crashed", "message": "no"}],
    "n_frames": 3,
    "grades": {"message": ""},
}
REFUSAL = {"status": "failed", "reason": "model_not_loaded", "message": "no such file"}
RUNS = {
    "status": "finished", "kind": "md", "steps_asked": 10, "seconds": 1.5, "seconds_per_step": 0.1,
    "runs": [{"structure": 0, "replica": 0, "steps": 10, "frames": 3, "stopped_by": "finished", "numbers": {"x": 1.0}}],
}  # fmt: skip
TRAJECTORIES = {
    "status": "finished", "engine": "environment", "steps_asked": 10, "hills": 3, "seconds": 1.5,
    "trajectories": [{"structure": 0, "replica": 0, "steps": 10, "frames": 3, "stopped_by": "finished"}],
}  # fmt: skip
LABELLING = {"n_frames": 3, "n_done": 3, "error": "", "messages": {"1": "scf"}}


def relaxations() -> dict:
    """Report of two fragments, one of them refused."""
    ids = frames().ids()
    record = {"carved_id": ids[0], "frame_id": ids[0], "parent_id": ids[1], "centre": 0, "natoms": 2, "accepted": True}
    refused = {**record, "frame_id": None, "accepted": False, "reason": "too close"}
    return {"status": "finished", "n_fragments": 2, "fragments": [record, refused], "seconds": 2.0}


def scan_answer() -> dict:
    """Answer of a scan with candidates."""
    from aiida_mlip.kernel.grade_histogram import GradeHistogram

    histogram = GradeHistogram(top=2.0, width=0.5)
    histogram.add(np.array([0.1, 1.2, 7.0]), np.array([14, 14, 8]))
    return {
        "status": "finished", "histogram": histogram.as_dict(), "n_candidates": 2, "n_atoms": 3,
        "fragments": {"n_accepted": 3}, "seconds": 1.0,
    }  # fmt: skip


def _json(*values: dict) -> Callable[[], tuple[bytes, ...]]:
    return lambda: tuple(json.dumps(value, indent=1).encode() for value in values)


@cache
def checkpoints() -> tuple[bytes, ...]:
    from aiida_mlip.io.explore import ExploreReport
    from aiida_mlip.workers.explore_checkpoint import Trusted, write_checkpoint

    atoms = frames().to_ase(0)
    trusted = Trusted.of(atoms, step=3, last_selected=-1, engine={"rng": np.arange(4)})
    return (write_checkpoint(ExploreReport.model_validate(RUNS), {0: trusted}),)


JOB = b"""structures: [si.cif]
codes: {pw: pw@localhost, train: nequip-train@localhost}
fidelities: {lda: {engine: qe, pseudo_family: debian-lda, ecutwfc_ry: 20}}
protocol: fast
train: &t {max_epochs: 3}
label: {max_concurrent: 2}
"""
SPEC = b"seed: 1\nsteps:\n- {name: a, generator: rattle, parents: structures, count: 3, sigma_ang: 0.05}\n"


# -- readers -----------------------------------------------------------------------------------------------------------


def _shard(path: Path) -> None:
    from aiida_mlip.io.shards import read_columns, read_foreign_shard, read_tables

    with path.open("rb") as stream:
        found = read_foreign_shard(stream, source=path.name)
    assert found.species
    assert np.isfinite(found.positions).all()
    with path.open("rb") as stream:
        assert len(read_columns(stream, ["energy", "region"], source=path.name)["energy"]) == len(found)
    with path.open("rb") as stream:
        read_tables(stream, source=path.name)


def _columns(path: Path) -> None:
    from aiida_mlip.io.shards import read_columns, read_tables

    with path.open("rb") as stream:
        read_tables(stream, source=path.name)
    with path.open("rb") as stream:
        columns = read_columns(stream, ["energy", "forces", "frame_id"], source=path.name)
    assert len(columns["forces"]) <= 10**6


def _npz(path: Path) -> None:
    from aiida_mlip.io.arrays import read_npz

    assert not any(value.dtype.hasobject for value in read_npz(path).values())


def _read_npy(path: Path) -> None:
    from aiida_mlip.io.arrays import read_npy

    assert not read_npy(path).dtype.hasobject


def _package(path: Path) -> None:
    from aiida_mlip.io.model_package import read_package

    with path.open("rb") as stream:
        json.dumps(read_package(stream, source=path.name).versions)


def _import(file_format: str | None = None) -> Callable[[Path], object]:
    def read(path: Path) -> None:
        from aiida_mlip.io.readers import join, read_path

        found = join(read_path(path, fidelity="pbe", file_format=file_format))
        assert np.isfinite(found.positions).all()
        assert found.species

    return read


def _large(path: Path) -> None:
    from aiida_mlip.io.large_frames import count_frames, read_large_frame

    read_large_frame(path, species=("Si", "O")).to_frames()
    count_frames(path)


def _md(path: Path) -> None:
    from aiida_mlip.io.pw_md import read_md_output

    segment = read_md_output(path.read_text(errors="replace"), frames().positions[:2], source=path.name)
    assert np.isfinite(segment.energy).all()


def _metrics(path: Path) -> None:
    from aiida_mlip.io.nequip_output import Curves, read_metrics, why_ended

    curves = read_metrics([path.read_text(errors="replace")], source=path.name)
    assert isinstance(curves, Curves)
    why_ended("", curves, max_epochs=3, factor=100.0, epochs=2)


def _log(path: Path) -> None:
    from aiida_mlip.io.documents import clipped_lines
    from aiida_mlip.io.nequip_output import data_statistics, read_metrics, why_ended
    from aiida_mlip.io.nequip_script import read_status
    from aiida_mlip.kernel.failures import classify, summary_line

    text = clipped_lines(path.read_text(errors="replace"))
    assert all(np.isfinite(value) for value in data_statistics(text).values())
    why_ended(text, read_metrics([], source=path.name), max_epochs=3, factor=100.0, epochs=2)
    read_status(text)
    classify(None, text)
    assert len(summary_line(text)) <= 200


def _answer(path: Path) -> None:
    from aiida_mlip.io.evaluation import read_answer

    json.dumps(read_answer(path)).encode()


def _request(path: Path) -> None:
    from aiida_mlip.io.scan import read_scan_request

    read_scan_request(path)


def _model(name: str) -> Callable[[Path], object]:
    def read(path: Path) -> None:
        from aiida_mlip.io import explore, fragments, label_messages, metadynamics
        from aiida_mlip.io.documents import parse_model

        kinds = {
            "explore": explore.ExploreReport,
            "metadynamics": metadynamics.MetadynamicsReport,
            "relax": fragments.RelaxReport,
            "label": label_messages.LabelReport,
        }
        report = parse_model(path.read_bytes(), kinds[name], source=path.name)
        json.dumps(report.model_dump(mode="json"), allow_nan=False).encode()

    return read


def _predictions(path: Path) -> None:
    from aiida_mlip.io.evaluation import read_novelty, read_predictions

    read_predictions(path)
    read_novelty(path)


def _grades(path: Path) -> None:
    from aiida_mlip.io.evaluation import read_grades

    read_grades(path)


def _checkpoint(path: Path) -> None:
    from aiida_mlip.workers.explore_checkpoint import read_checkpoint

    read_checkpoint(path)


def _job(path: Path) -> None:
    from aiida_mlip.cli.develop import read_job

    read_job(path)


def _spec(path: Path) -> None:
    from aiida_mlip.cli.generate import read_spec

    read_spec(path)


def _colvars(path: Path) -> None:
    from aiida_mlip.io.colvars import check_colvars_input, without_values

    text = path.read_text(errors="replace")
    without_values(text)
    check_colvars_input(text, n_atoms=4, where=path.name)


def _pmf(path: Path) -> None:
    from aiida_mlip.io.colvars import read_pmf

    read_pmf(path.read_text(errors="replace"), source=path.name)


def _levels(path: Path) -> None:
    from aiida_mlip.io.training_levels import TrainingLevels

    TrainingLevels.from_text(path.read_text(errors="replace"), source=path.name)


LEVELS = {
    "fidelities": ["lda", "pbe"], "target": "pbe", "joint": True, "reference_energies": {"lda": {"Si": -1.0}},
    "energy_shifts": {"lda": {"Si": 0.0}}, "repetition": 2,
}  # fmt: skip
REQUEST = {"version": 1, "file": "frame.xyz", "species": ["Si"], "threshold": 1.5, "hosts": []}
COLVARS = (
    b"colvar {\n name d\n distance { group1 { atomNumbers 1 2 }\n group2 { atomNumbers 3 } }\n}\n"
    b"metadynamics {\n colvars d\n}\n"
)

TARGETS: tuple[Target, ...] = (
    Target("shard.npz", _shard, shards, archive=True),
    Target("columns.npz", _columns, shards, archive=True),
    Target("series.npz", _npz, archives, archive=True),
    Target("novelty.npy", _read_npy, arrays),
    Target("grades.npz", _grades, grades, archive=True),
    Target("predictions.npz", _predictions, predictions, archive=True),
    Target("checkpoint.npz", _checkpoint, checkpoints, archive=True),
    Target("model.nequip.zip", _package, packages, archive=True),
    Target("frames.xyz", _import(), extxyz),
    Target("frame.cif", _import(), lambda: (_cached("cif"),)),
    Target("POSCAR", _import("vasp"), lambda: (_cached("vasp"),)),
    Target("frames.traj", _import(), lambda: (_cached("traj"),)),
    Target("frames.xsf", _import(), lambda: (_cached("xsf"),)),
    Target("frames.pdb", _import(), lambda: (_cached("proteindatabank"),)),
    Target("pw.out", _import(), pw_outputs),
    Target("md.out", _md, pw_outputs),
    Target("large.xyz", _large, extxyz),
    Target("large.dump", _large, dumps),
    Target("large.lmp", _large, data_files),
    Target("large.xyz.gz", _large, lambda: tuple(gzipped(seed) for seed in extxyz())),
    Target("large.traj", _large, lambda: (_cached("traj"),)),
    Target("metrics.csv", _metrics, lambda: (METRICS.encode(),)),
    Target("train.out", _log, lambda: (LOG.encode(), STATUS.encode(), pw_outputs()[0])),
    Target("answer.json", _answer, _json(ERRORS, REFUSAL), document=True),
    Target("request.json", _request, _json(REQUEST), document=True),
    Target("explore.json", _model("explore"), _json(RUNS), document=True),
    Target("metadynamics.json", _model("metadynamics"), _json(TRAJECTORIES), document=True),
    Target("relax.json", _model("relax"), lambda: _json(relaxations())(), document=True),
    Target("label.json", _model("label"), _json(LABELLING), document=True),
    Target("levels.json", _levels, _json(LEVELS), document=True),
    Target("job.yaml", _job, lambda: (JOB,)),
    Target("generate.yaml", _spec, lambda: (SPEC,)),
    Target("colvars.in", _colvars, lambda: (COLVARS,)),
    Target("scf.xml", bundles.read_xml, lambda: bundles.xmls()[:4]),
    Target("frame.tar.gz", bundles.read_archive, bundles.frame_archives, damage=bundles.frame_mutant),
    Target("results.tar", bundles.read_results, bundles.results, damage=bundles.results_mutant),
    Target("inputs.tar.gz", bundles.read_inputs, bundles.inputs),
    Target("begun", bundles.read_begun, lambda: bundles.BEGUN),
    Target("bias.pmf", _pmf, lambda: (b"# d pmf\n0.1 2.0\n0.2 1.0\n",)),
)


@cache
def _cached(kind: str) -> bytes:
    return _by_ase(kind)


@contextmanager
def watched(seconds: float = PATIENCE) -> Iterator[None]:
    """Turn a hang into an error: the time is that of the processor, a shared machine waits."""
    import signal

    def stop(*_: object) -> None:
        raise TimeoutError(f"still busy after {seconds} s")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
