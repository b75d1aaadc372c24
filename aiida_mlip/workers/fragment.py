"""``aiida-mlip-fragment``: relax the buffers of fragments and say which of them are fit to be labelled.

Reads ``input.json`` (:class:`~aiida_mlip.io.fragments.RelaxRequest`), the shards of fragments, ``parent_novelty.npy``,
a package (whose code is executed) and its grades. Writes ``fragments.npz`` and ``novelty.npy`` (fragments that were
accepted, and γ of their atoms) and ``output.json``: what became of each, and why. All of it also now and then on the
way. Exit status 0 unless nothing at all could be done.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import ValidationError

from aiida_mlip.errors import InvalidInputError, MlipError, SpeciesError
from aiida_mlip.io.arrays import read_npy, read_npz
from aiida_mlip.io.fragments import (
    ACCEPTED_FILE,
    MODEL_FILE,
    NOVELTY_FILE,
    OUTPUT_FILE,
    PARENT_NOVELTY_FILE,
    REQUEST_FILE,
    STATISTICS_FILE,
    RelaxReport,
    RelaxRequest,
)
from aiida_mlip.io.shards import write_shard
from aiida_mlip.kernel.frames import Frames, concatenate
from aiida_mlip.kernel.uncertainty.grades import Grades
from aiida_mlip.workers.force_source import ModelNotLoadedError, load_potential
from aiida_mlip.workers.fragment_judge import FragmentJudge, Judged
from aiida_mlip.workers.model_loading import LoadedModel
from aiida_mlip.workers.run_files import read_frames, replace_file

#: Seconds between saved results.
_SAVE_EVERY: Final[float] = 10.0
_REASONS: Final[tuple[tuple[type[Exception], str], ...]] = (
    (SpeciesError, "species_not_covered"),
    (ModelNotLoadedError, "model_not_loaded"),
)


def run(folder: Path, request: RelaxRequest) -> RelaxReport:
    """Relax and judge what a request names; see the module's text for the files.

    :raises InvalidInputError: files that do not fit one another.
    :raises SpeciesError: the potential covers not one of the fragments.
    :raises FileFormatError: a file that is missing or broken, or a model that cannot be loaded.
    """
    started = time.perf_counter()
    fragments = read_frames(folder, request.fragments)
    before = _parent_novelty(folder, fragments)
    _check_species(fragments, request.species)
    judge = FragmentJudge(
        lambda derivatives: _load(folder, request, derivatives=derivatives),
        Grades.from_arrays(read_npz(folder / STATISTICS_FILE)),
        request.settings,
        fidelity=_fidelity_index(request),
    )
    done: list[Judged] = []

    def report(status: Any) -> RelaxReport:
        seconds = round(time.perf_counter() - started, 3)
        records = tuple(each.record for each in done)
        return RelaxReport(status=status, n_fragments=len(fragments), fragments=records, seconds=seconds)

    saved = started
    for row in range(len(fragments)):
        now = time.perf_counter()
        if request.max_seconds is not None and now - started > request.max_seconds:
            _write(folder, done)
            return report("walltime")
        if now - saved >= _SAVE_EVERY and done:
            saved = now
            _write(folder, done)
            replace_file(folder / OUTPUT_FILE, report("running").model_dump_json(indent=1).encode())
        done.append(judge.judge(fragments.take([row]), before[fragments.atom_slice(row)]))
        _tell(row, done[-1])
    _write(folder, done)
    return report("finished")


def _load(folder: Path, request: RelaxRequest, *, derivatives: bool) -> LoadedModel:
    return load_potential(
        folder / MODEL_FILE,
        species=(),
        wanted=(),
        device=request.settings.device,
        expected_sha256=request.sha256,
        features=True,
        derivatives=derivatives,
    )


def _check_species(fragments: Frames, species: Sequence[str]) -> None:
    """Refuse before torch is even imported where the potential could judge nothing."""
    if not species:
        return
    every = [set(fragments.take([row]).species) - set(species) for row in range(len(fragments))]
    if every and all(every):
        missing = sorted(set.union(*every))
        raise SpeciesError(f"the potential does not cover {', '.join(missing)}; it covers {', '.join(species)}")


def _parent_novelty(folder: Path, fragments: Frames) -> np.ndarray:
    values = read_npy(folder / PARENT_NOVELTY_FILE)
    if values.shape != (fragments.n_atoms,):
        raise InvalidInputError(
            f"{PARENT_NOVELTY_FILE} has shape {values.shape}, expected one number for each of {fragments.n_atoms} atoms"
        )
    return np.asarray(values, dtype=float)


def _fidelity_index(request: RelaxRequest) -> int | None:
    names, wanted = request.fidelities, request.settings.fidelity
    if wanted is not None and names and wanted not in names:
        raise InvalidInputError(f"settings.fidelity: {wanted!r} is none of the potential's: {', '.join(names)}")
    if len(names) < 2:
        return None
    if wanted is None:
        raise InvalidInputError(f"settings.fidelity: missing, the potential knows several: {', '.join(names)}")
    return names.index(wanted)


def _write(folder: Path, done: Sequence[Judged]) -> None:
    """The accepted ones and their grades, each file in one step; nothing where there are none."""
    accepted = [(each.frames, each.novelty) for each in done if each.frames is not None]
    if not accepted:
        return
    buffer = io.BytesIO()
    np.save(buffer, np.concatenate([novelty for _, novelty in accepted]), allow_pickle=False)
    replace_file(folder / ACCEPTED_FILE, write_shard(concatenate([frames for frames, _ in accepted])))
    replace_file(folder / NOVELTY_FILE, buffer.getvalue())


def _tell(row: int, judged: Judged) -> None:
    record = judged.record
    what = f"{record.steps} steps, " if record.steps else ""
    print(f"fragment {row}: {what}{'accepted' if record.accepted else 'refused: ' + record.reason}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program.

    :returns: 0, or 2 when nothing at all could be done (``output.json`` says why).
    """
    parser = argparse.ArgumentParser(
        prog="aiida-mlip-fragment", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=Path(), help="where the files are (default: here)")
    folder: Path = parser.parse_args(arguments).folder.resolve()
    try:
        request = RelaxRequest.model_validate(json.loads((folder / REQUEST_FILE).read_text(encoding="utf-8")))
        report = run(folder, request)
    except (OSError, ValueError, ValidationError, MlipError) as error:
        reason = next((name for kind, name in _REASONS if isinstance(error, kind)), "invalid_input")
        print(f"error: {error}", file=sys.stderr)
        report = RelaxReport(status="refused", reason=reason, message=str(error)[:2000])
    if folder.is_dir():
        replace_file(folder / OUTPUT_FILE, report.model_dump_json(indent=1).encode())
    if report.status == "refused":
        return 2
    accepted = sum(record.accepted for record in report.fragments)
    print(f"{report.status}: {accepted} of {len(report.fragments)} fragments accepted, {report.seconds:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
