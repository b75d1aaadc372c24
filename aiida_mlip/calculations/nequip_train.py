"""NequipTrainCalculation: one training with the unmodified ``nequip-train``, and a package of its best checkpoint."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from aiida import orm
from aiida.common.datastructures import CalcInfo, CodeInfo
from aiida.common.folders import Folder
from aiida.engine import CalcJob

from aiida_mlip.calculations.options import validate_options
from aiida_mlip.calculations.resources import ONE_CORE
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.potential import PotentialData
from aiida_mlip.data.training_jobs import config_of, continued_jobs, time_budget_of
from aiida_mlip.data.training_set import TrainingSet, earlier_job, training_set
from aiida_mlip.errors import MlipError
from aiida_mlip.io.extxyz import write_extxyz
from aiida_mlip.io.nequip_config import (
    CHECKPOINT_DIR,
    CONFIG_FILE,
    LAST_CHECKPOINT,
    LEVEL,
    METRICS_FILE,
    TRAIN_FILE,
    TYPES_COLUMN,
    VAL_FILE,
    TrainingData,
    TrainingStart,
    check_overrides,
    config_text,
    cutoff_of,
    nequip_config,
)
from aiida_mlip.io.nequip_script import (
    BEST_FILE,
    HISTORY_DIR,
    INITIAL_DIR,
    PACKAGE_FILE,
    PACKAGE_LOG,
    STATUS_FILE,
    STDERR,
    STDOUT,
    after_training,
    before_training,
)
from aiida_mlip.io.training_levels import LEVELS_FILE
from aiida_mlip.kernel.reference_energies import rms_force
from aiida_mlip.kernel.training import labels_of
from aiida_mlip.protocols.train import TrainSettings, train_settings


class NequipTrainCalculation(CalcJob):
    """Train one NequIP or Allegro potential on the training part of a dataset.

    With ``multi_fidelity`` in the settings the potential is a joint one of several levels of theory, and with its
    method ``pooled`` one for the target that has seen the others too.

    Entry point ``aiida_mlip.nequip_train``. The code is ``nequip-train`` by its absolute path; ``nequip-package`` is
    looked for beside it. Training ends by itself before the walltime, leaves checkpoints in the remote folder, and
    is continued by a job with that folder as ``restart_folder``.
    """

    @classmethod
    def define(cls, spec: Any) -> None:  # Any: aiida-core ships no type for process specs
        """Ports and exit codes."""
        super().define(spec)
        spec.input("dataset", valid_type=DatasetData, help="Labelled frames.")
        spec.input("split", valid_type=orm.ArrayData, help="Arrays `frame_id` (n, 16) and `member_<i>` (n,): parts.")
        spec.input(
            "settings",
            valid_type=orm.Dict,
            validator=_validate_settings,
            help="`protocol` and overrides, see aiida_mlip.protocols.train; `member` selects the part of the split.",
        )
        spec.input(
            "restart_folder",
            valid_type=orm.RemoteData,
            required=False,
            help="Go on exactly where this training ended: weights, optimizer, epoch.",
        )
        spec.input(
            "initial_folder",
            valid_type=orm.RemoteData,
            required=False,
            help="Begin a new training from the best weights of this one.",
        )
        spec.input(
            "initial_potential",
            valid_type=PotentialData,
            required=False,
            help="Begin a new training from the weights of this potential (fine-tuning).",
        )
        spec.inputs["metadata"]["options"]["resources"].default = dict(ONE_CORE)
        spec.inputs["metadata"]["options"]["parser_name"].default = "aiida_mlip.nequip_train"
        spec.inputs["metadata"]["options"]["withmpi"].default = False
        spec.inputs["metadata"]["options"]["output_filename"].default = STDOUT
        spec.inputs["metadata"]["options"].validator = validate_options
        spec.inputs["metadata"]["options"]["scheduler_stderr"].default = "_scheduler-stderr.txt"
        spec.inputs.validator = _validate_inputs

        spec.output("potential", valid_type=PotentialData, required=False, help="Package of the best checkpoint.")
        spec.output("curves", valid_type=orm.ArrayData, required=False, help="Errors per epoch.")
        spec.output("summary", valid_type=orm.Dict, required=False, help="Epochs, best epoch, frames seen, ending.")
        spec.default_output_node = "summary"

        spec.exit_code(300, "ERROR_NO_OUTPUT", message="Nothing was retrieved.", invalidates_cache=True)
        spec.exit_code(
            301, "ERROR_NO_CHECKPOINT", message="Training left no checkpoint: {reason}", invalidates_cache=True
        )
        spec.exit_code(302, "ERROR_NO_PACKAGE", message="The checkpoint could not be packaged: {reason}")
        spec.exit_code(
            303, "ERROR_OUTPUT_TRUNCATED", message="The metrics cannot be read: {reason}", invalidates_cache=True
        )
        spec.exit_code(310, "ERROR_FRAMES_MISMATCH", message="Trained on {seen} frames, but the split has {expected}.")
        spec.exit_code(400, "ERROR_WALLTIME", message="Out of time after {epochs} epochs.", invalidates_cache=True)
        spec.exit_code(401, "ERROR_OUT_OF_MEMORY", message="Out of memory.", invalidates_cache=True)
        spec.exit_code(410, "ERROR_NOT_FINITE", message="The validation error became NaN or infinite in epoch {epoch}.")
        spec.exit_code(411, "ERROR_DIVERGED", message="The validation error grew past {factor} times its best.")
        spec.exit_code(
            420, "ERROR_INCOMPLETE", message="Training ended after {epochs} epochs: {reason}", invalidates_cache=True
        )

    def prepare_for_submission(self, folder: Folder) -> CalcInfo:
        """Write configuration and frames, and say what to copy, run and retrieve."""
        settings = train_settings(self.inputs.settings.get_dict())
        given = training_set(self.inputs, settings)
        copies, start = self._starting_point(folder, settings, new_references=given.new_references)
        data = _training_data(given, settings)
        values = settings.model_dump()
        values["model"]["cutoff_ang"] = self._cutoff(settings)
        config = nequip_config(values, data, seed=settings.seed + settings.member, start=start)
        with folder.open(CONFIG_FILE, "w", encoding="utf-8") as handle:
            handle.write(config_text(config))
        for name, frames in ((TRAIN_FILE, given.train), (VAL_FILE, given.val)):
            levels = {LEVEL: given.level_indices(frames)} if given.levels else None
            types = {TYPES_COLUMN: given.type_indices(frames)} if settings.level_types > 1 else None
            with folder.open(name, "w", encoding="utf-8") as handle:
                write_extxyz(frames, handle, nan_missing=True, lineage=False, info=levels, columns=types)
        if given.levels is not None:
            with folder.open(LEVELS_FILE, "w", encoding="utf-8") as handle:
                handle.write(given.levels.text())

        code = CodeInfo()
        code.code_uuid = self.inputs.code.uuid
        code.cmdline_params = ["-cn", "config", "hydra.run.dir=.", "hydra.output_subdir=null"]
        code.stdout_name, code.stderr_name = self.inputs.metadata.options.output_filename, STDERR

        info = CalcInfo()
        info.codes_info = [code]
        info.prepend_text = before_training(
            threads=settings.threads or self.inputs.metadata.options.resources.get("num_cores_per_mpiproc"),
            initial=(
                str(PurePosixPath(start.initial_checkpoint).parent)
                if start.initial_checkpoint and not start.checkpoint
                else None
            ),
        )
        info.append_text = after_training(_packager(self.inputs.code), keep_last=data.keep_last)
        info.remote_copy_list = copies
        info.provenance_exclude_list = [TRAIN_FILE, VAL_FILE, f"{INITIAL_DIR}/{PACKAGE_FILE}"]
        info.retrieve_list = [
            code.stdout_name,
            STDERR,
            STATUS_FILE,
            PACKAGE_LOG,
            PACKAGE_FILE,
            (METRICS_FILE, ".", 2),
            *([(f"{HISTORY_DIR}/*.csv", ".", 2)] if start.checkpoint else []),
        ]
        return info

    def _cutoff(self, settings: TrainSettings) -> float:
        """Cutoff (Å) of the model: weights that are given bring their own."""
        if "initial_potential" in self.inputs:
            return float(self.inputs.initial_potential.cutoff_ang)
        earlier = earlier_job(self.inputs)
        return settings.model.cutoff_ang if earlier is None else cutoff_of(config_of(earlier))

    def _starting_point(
        self, folder: Folder, settings: TrainSettings, *, new_references: bool
    ) -> tuple[list[tuple[str, str, str]], TrainingStart]:
        """Remote copies to make, and where the weights come from; paths keep their names through all restarts."""
        copies: list[tuple[str, str, str]] = []
        checkpoint = initial_checkpoint = initial_package = None
        if "initial_folder" in self.inputs:
            initial_checkpoint = f"{INITIAL_DIR}/{self.inputs.initial_folder.uuid[:8]}/{BEST_FILE}"
        if "initial_potential" in self.inputs:
            initial_package = f"{INITIAL_DIR}/{PACKAGE_FILE}"
            folder.get_subfolder(INITIAL_DIR, create=True)
            with self.inputs.initial_potential.open_package() as package, folder.open(initial_package, "wb") as handle:
                handle.write(package.read())
        if "restart_folder" in self.inputs:
            copies += _continued_files(folder, self.inputs.restart_folder, with_initial=initial_package is None)
            checkpoint = LAST_CHECKPOINT
        elif initial_checkpoint is not None:
            copies += _initial_files(folder, self.inputs.initial_folder, str(PurePosixPath(initial_checkpoint).parent))
        return copies, TrainingStart(
            checkpoint=checkpoint,
            initial_checkpoint=initial_checkpoint,
            initial_package=initial_package,
            new_references=new_references,
            max_time_s=self._time_budget(settings),
        )

    def _time_budget(self, settings: TrainSettings) -> int | None:
        """Seconds of training, those of the continued jobs included; leaves time to start up and to package."""
        walltime = self.inputs.metadata.options.get("max_wallclock_seconds")
        budget = settings.time_limit_s
        if walltime is not None:
            left = max(int(0.9 * walltime - 30), walltime // 2, 1)
            budget = left if budget is None else min(budget, left)
        if budget is not None and "restart_folder" in self.inputs:
            # the timer of the trainer is part of the checkpoint: it goes on counting
            budget += sum(time_budget_of(job) for job in continued_jobs(self.inputs.restart_folder)[:1])
        return budget


def _training_data(given: TrainingSet, settings: TrainSettings) -> TrainingData:
    """Species, reference energies, force scale, and what the parts have labels of."""
    labels = labels_of(given.train)
    return TrainingData(
        species=given.species,
        reference_energies=given.reference_energies,
        force_scale_ev_per_ang=rms_force(given.train),
        with_energy="energy" in labels,
        with_forces="forces" in labels,
        with_stress="stress" in labels,
        validated=labels_of(given.val),
        keep_last=settings.keeps_last(len(given.val)),
        n_level_types=settings.level_types,
    )


# -- files of the job ---------------------------------------------------------------------------------------------


def _continued_files(folder: Folder, source: orm.RemoteData, *, with_initial: bool) -> list[tuple[str, str, str]]:
    """Copies of checkpoints and metrics of a training to go on with; parents of single files are made here."""
    depth = len(continued_jobs(source))
    copies = _copies(source, (CHECKPOINT_DIR, CHECKPOINT_DIR))
    if with_initial and _has_initial_weights(source):
        copies += _copies(source, (INITIAL_DIR, INITIAL_DIR))
    if depth > 1:
        copies += _copies(source, (HISTORY_DIR, HISTORY_DIR))
    else:
        folder.get_subfolder(HISTORY_DIR, create=True)
    return copies + _copies(source, (METRICS_FILE, f"{HISTORY_DIR}/{depth:03d}.csv"))


def _initial_files(folder: Folder, source: orm.RemoteData, target: str) -> list[tuple[str, str, str]]:
    """Copies of the checkpoints of a training to start from, and of the weights that those refer to in turn."""
    if _has_initial_weights(source):
        return _copies(source, (INITIAL_DIR, INITIAL_DIR), (CHECKPOINT_DIR, target))
    folder.get_subfolder(INITIAL_DIR, create=True)
    return _copies(source, (CHECKPOINT_DIR, target))


def _has_initial_weights(source: orm.RemoteData) -> bool:
    """Whether the training that left this folder started from other weights: its checkpoints refer to them."""
    job = source.creator
    return isinstance(job, orm.CalcJobNode) and any(
        port in job.inputs for port in ("initial_folder", "initial_potential")
    )


def _copies(source: orm.RemoteData, *pairs: tuple[str, str]) -> list[tuple[str, str, str]]:
    root = PurePosixPath(source.get_remote_path())
    return [(source.computer.uuid, str(root / what), where) for what, where in pairs]


def _packager(code: orm.AbstractCode) -> str:
    """``nequip-package`` in the folder of ``nequip-train``; a bare name is looked for on the PATH."""
    executable = PurePosixPath(str(code.get_executable()))
    return str(executable.parent / "nequip-package") if executable.is_absolute() else "nequip-package"


# -- validation ------------------------------------------------------------------------------------------------


def _validate_settings(value: orm.Dict, _: Any) -> str | None:
    try:
        check_overrides(train_settings(value.get_dict()).model_dump())
    except MlipError as error:
        return str(error)
    return None


def _validate_inputs(value: Any, _: Any) -> str | None:
    """The rules between ports."""
    if "initial_folder" in value and "initial_potential" in value:
        return "give one of 'initial_folder' and 'initial_potential', not both"
    if any(port not in value for port in ("dataset", "split", "settings")):
        return None
    try:
        training_set(value, train_settings(value["settings"].get_dict()))
    except MlipError as error:
        return str(error)
    return None
