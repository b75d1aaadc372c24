"""What a bundle of pw.x labels leaves, and what damage does to it: archives in an archive, changed and packed anew."""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_mutations import NAMES, mutated

Members = list[tuple[str, bytes, bytes]]
#: Kinds of members of an archive: mostly files, else a link, a folder, a device.
KINDS = (tarfile.REGTYPE, tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE)
TIMES = b"1700000000.5 1700000002.25 0\n"


def xml(natoms: int = 2, *, energy: float = -7.9, converged: str = "true") -> bytes:
    """data-file-schema.xml of an scf, shortened to what is read of it."""
    forces = "\n".join("1.0e-3 -2.0e-4 0.0e0" for _ in range(natoms))
    stress = "-1.0e-5 0.0 0.0\n0.0 -1.0e-5 0.0\n0.0 0.0 -1.0e-5"
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<qes:espresso xmlns:qes="http://www.quantum-espresso.org/ns/qes/qes-1.0" Units="Hartree atomic units">
  <output>
    <convergence_info>
      <scf_conv><convergence_achieved>{converged}</convergence_achieved><n_scf_steps>10</n_scf_steps></scf_conv>
    </convergence_info>
    <total_energy><etot>{energy:.15e}</etot></total_energy>
    <band_structure>
      <nbnd>4</nbnd>
      <ks_energies><occupations size="4">1.0e0 1.0e0 1.0e0 0.0e0</occupations></ks_energies>
    </band_structure>
    <forces rank="2" dims="3 {natoms}" order="F">{forces}</forces>
    <stress rank="2" dims="3 3" order="F">{stress}</stress>
  </output>
  <timing_info><total label="PWSCF"><cpu>1.5</cpu><wall>1.75</wall></total></timing_info>
</qes:espresso>
""".encode()


@cache
def xmls() -> tuple[bytes, ...]:
    spin = xml().replace(b"<nbnd>4</nbnd>", b"<nbnd_up>2</nbnd_up><nbnd_dw>2</nbnd_dw>")
    return xml(), xml(1), xml(converged="false"), spin, b"<espresso><input/></espresso>"


def output() -> bytes:
    """What pw.x prints, shortened."""
    from fuzz_readers import pw_outputs

    return pw_outputs()[2] + b"     PWSCF        :      1.00s CPU      1.75s WALL\n\n   JOB DONE.\n"


def members(natoms: int = 2) -> Members:
    """Files of a frame that went well."""
    plain = {"times": TIMES, "aiida.out": output(), "aiida.err": b"", "data-file-schema.xml": xml(natoms)}
    return [(name, body, tarfile.REGTYPE) for name, body in plain.items()]


def archive(content: Members) -> bytes:
    """An archive of these, whatever they are called."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as made:
        for name, body, kind in content:
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, len(body) if kind == tarfile.REGTYPE else 0
            info.linkname = "../../secret" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            made.addfile(info, io.BytesIO(body))
    return buffer.getvalue()


def packed(content: bytes) -> bytes:
    return gzip.compress(content, compresslevel=1, mtime=0)


@cache
def frame_archives() -> tuple[bytes, ...]:
    crashed = [("aiida.out", b"Error in routine x (1):\n", tarfile.REGTYPE), ("CRASH", b"%%\n", tarfile.REGTYPE)]
    return packed(archive(members())), packed(archive(members(1))), packed(archive(crashed))


@cache
def results() -> tuple[bytes, ...]:
    """results.tar of the frames of fuzz_readers.frames(): of two atoms, of two, and of one."""
    first, last, _ = frame_archives()
    return (archive([(f"./0000{i}.tar.gz", (first, first, last)[i], tarfile.REGTYPE) for i in range(3)]),)


@cache
def inputs() -> tuple[bytes, ...]:
    from aiida_mlip.io.pw_bundle import pack_inputs

    return (pack_inputs(["&CONTROL\n/\n", "&CONTROL\n calculation = 'scf'\n/\n"]),)


def damaged(rng: random.Random, content: Members) -> Members:
    """Members of an archive changed, renamed, repeated, turned into links or left out."""
    content = list(content)
    for _ in range(rng.choice((1, 1, 2, 3)) if content else 0):
        if not content:
            break
        where = rng.randrange(len(content))
        name, body, kind = content[where]
        what = rng.randrange(8)
        if what < 4:
            body = mutated(rng, [body])
        elif what == 4:
            name = rng.choice((*NAMES, "./CRASH", "00001.tar.gz", "9" * 40 + ".tar.gz")).replace("\x00", "") or "x"
        elif what == 5:
            kind = rng.choice(KINDS)
        elif what == 6:
            content.insert(where, (name, mutated(rng, [body]), kind))
            continue
        else:
            del content[where]
            continue
        content[where] = (name, body, kind)
    return content


def frame_mutant(rng: random.Random) -> bytes:
    """A damaged archive of a frame."""
    if rng.random() < 0.3:
        return mutated(rng, frame_archives())
    content = archive(damaged(rng, members(rng.choice((1, 2)))))
    return packed(mutated(rng, [content]) if rng.random() < 0.2 else content)


def results_mutant(rng: random.Random) -> bytes:
    """A damaged archive of archives."""
    if rng.random() < 0.3:
        return mutated(rng, results())
    content = [(f"./0000{i}.tar.gz", packed(archive(members(n))), tarfile.REGTYPE) for i, n in enumerate((2, 2, 1))]
    where = rng.randrange(len(content))
    content[where] = (content[where][0], frame_mutant(rng), tarfile.REGTYPE)
    return archive(damaged(rng, content) if rng.random() < 0.3 else content)


# -- readers -----------------------------------------------------------------------------------------------------------


def read_xml(path: Path) -> None:
    from aiida_mlip.io.pw_xml import read_scf_xml

    found = read_scf_xml(path.read_bytes(), source=path.name)
    assert isinstance(found.has_too_few_bands, bool)
    for values in (found.forces, found.stress):
        assert values is None or values.dtype == np.float64


def read_archive(path: Path) -> None:
    from aiida_mlip.io.pw_bundle import read_frame

    found = read_frame(path.read_bytes(), source=path.name)
    json.dumps([found.output, found.error, found.crash, found.status]).encode()


def read_results(path: Path) -> None:
    """Never refused: what can be read is taken, and what cannot is told."""
    from aiida_mlip.io.pw_bundle import split_results

    found, problem = split_results(path.read_bytes())
    assert all(isinstance(index, int) and index >= 0 for index in found)
    assert problem == "" or path.name in problem
    problem.encode()


def read_inputs(path: Path) -> None:
    from aiida_mlip.io.pw_bundle import unpack_input

    for index in (0, 1):
        unpack_input(path.read_bytes(), index).encode()


def read_begun(path: Path) -> None:
    """Never refused either."""
    from aiida_mlip.io.pw_bundle import begun_frames

    assert all(index >= 0 for index in begun_frames(path.read_text(errors="replace")))


# -- the job -----------------------------------------------------------------------------------------------------------

BEGUN: Sequence[bytes] = (b"00000 1700000000.5\n00001 1700000003.5\n00002 1700000006.5\n",)


def batch() -> dict[str, Any]:
    """Inputs of a bundle of the frames of fuzz_readers.frames()."""
    import fuzz_readers as files
    from aiida import orm

    from aiida_mlip.data.dataset import DatasetData
    from aiida_mlip.kernel.labelling import without_labels

    spec = {"engine": "qe", "protocol": "fast", "pseudo_family": "none", "ecutwfc_ry": 20, "occupations": "fixed"}
    content = {"fidelity": "lda", "spec": spec, "settings": "f" * 64, "source": "dataset", "rows": [0, 1, 2]}
    computer = orm.load_computer("localhost")
    code = orm.InstalledCode(label="pw-of-a-bundle", computer=computer, filepath_executable="/bin/true", with_mpi=False)
    return {
        "dataset": DatasetData.from_frames(without_labels(files.frames())),
        "batch": orm.Dict(content),
        "code": code,
    }
