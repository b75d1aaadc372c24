"""Fragments of a frame too large to leave the machine it is on: cut, relaxed and judged there.

Only what is fit to be labelled is written, each atom with its number in the frame. Memory: the frame, its grades, and
one fragment at a time.
"""

from __future__ import annotations

import hashlib
import io
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.io.fragments import FragmentKeys
from aiida_mlip.io.large_frames import LargeFrame
from aiida_mlip.io.scan import FRAGMENT_NOVELTY, FRAGMENTS, ScanRequest
from aiida_mlip.io.shards import write_shard
from aiida_mlip.kernel.fragments.frame import describe_fragment, fragment_row, fragments_of_frame
from aiida_mlip.kernel.frames import concatenate
from aiida_mlip.kernel.uncertainty.grades import Grades
from aiida_mlip.workers.fragment_judge import FragmentJudge
from aiida_mlip.workers.model_loading import LoadedModel, load_model
from aiida_mlip.workers.run_files import replace_file

#: Centres tried for each fragment wanted, before it is clear that most are refused for the same reason.
_TRIES: Final[int] = 3


def cut_fragments(
    folder: Path, request: ScanRequest, frame: LargeFrame, novelty: np.ndarray, grades: Grades
) -> dict[str, Any]:
    """Fragments around the worst atoms: files of the accepted ones, and what the answer says of all.

    :param novelty: (a,) γ of every atom of the frame.
    :param grades: of the potential's training set.
    :returns: ``fragments``: counts, what became of each, the reason for each centre without one, and where the frame
        is: file, its SHA-256, number of the frame in it. ``message``: why there are none at all, of a frame smaller
        than the fragments, say.
    """
    settings = request.fragments
    if settings is None:
        return {}
    started = time.perf_counter()
    frames, values = frame.to_frames(), np.asarray(novelty, dtype=float)
    message = ""
    try:
        made, refused = fragments_of_frame(
            frames,
            0,
            values,
            settings.carving(),
            threshold=settings.threshold,
            most=settings.max_fragments,
            completion=settings.completion,
            hosts=[crystal.host() for crystal in request.hosts],
            tries=_TRIES * settings.max_fragments,
        )
    except InvalidInputError as error:  # of no use for fragments, but the scan is done
        made, refused, message = [], [], str(error)
        print(f"no fragments: {error}", flush=True)
    carved = time.perf_counter()
    judge = FragmentJudge(lambda derivatives: _load(folder, request, settings, derivatives), grades, settings)
    records, accepted, their_novelty = [], [], []
    for fragment in made:
        row = fragment_row(fragment, frames, 0)
        judged = judge.judge(row, fragment.parent_values(values))
        records.append(describe_fragment(fragment, row, values) | judged.record.model_dump(mode="json"))
        if judged.frames is not None:
            accepted.append(judged.frames)
            their_novelty.append(judged.novelty)
    if accepted:
        buffer = io.BytesIO()
        np.save(buffer, np.concatenate(their_novelty), allow_pickle=False)
        replace_file(folder / FRAGMENTS, write_shard(concatenate(accepted)))
        replace_file(folder / FRAGMENT_NOVELTY, buffer.getvalue())
    print(f"{len(made)} fragments cut, {len(accepted)} of them accepted", flush=True)
    return {
        "fragments": {
            "n_fragments": len(made),
            "n_accepted": len(accepted),
            "n_relaxed": sum(record["steps"] > 0 for record in records),
            "fragments": records,
            "message": message,
            "refused": [asdict(refusal) | {"grade": _finite(refusal.grade)} for refusal in refused],
            "parent_id": frames.ids()[0],
            "file": Path(request.file).name,
            "file_sha256": _sha256(folder / request.file),
            "frame": frame.index,
            "seconds": {
                "carve": round(carved - started, 3),
                "judge": round(time.perf_counter() - carved, 3),
            },
        }
    }


def _load(folder: Path, request: ScanRequest, settings: FragmentKeys, derivatives: bool) -> LoadedModel:
    return load_model(
        folder / request.model,
        device=settings.device if settings.device != "auto" else request.device,
        expected_sha256=request.sha256,
        features=True,
        frames="one",
        derivatives=derivatives,
    )


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
