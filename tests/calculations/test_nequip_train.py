"""One training with the real nequip-train: restart, warm start, divergence, failures; parser and monitor."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from aiida import orm
from aiida.common.links import LinkType
from aiida.engine import run_get_node
from emt_frames import emt_frames

from aiida_mlip.calculations.functions.train import split_node
from aiida_mlip.calculations.monitors import training_diverged
from aiida_mlip.calculations.nequip_train import NequipTrainCalculation
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.potential import PotentialData
from aiida_mlip.io.nequip_config import CONFIG_FILE, METRICS_FILE
from aiida_mlip.io.nequip_script import STATUS_FILE
from aiida_mlip.kernel.splits import split_frames
from aiida_mlip.workchains.nequip_base import NequipBaseWorkChain

TINY = {
    "protocol": "fast",
    "device": "cpu",
    "threads": 1,
    "max_epochs": 3,
    "optimizer": {"schedule": "constant", "learning_rate": 0.01},
    "model": {"cutoff_ang": 4.0, "num_features": 4, "num_layers": 1, "l_max": 1, "radial_mlp_width": 4},
}


CODES = NequipTrainCalculation.exit_codes


def tiny(**changes):
    return orm.Dict({**TINY, **changes})


@pytest.fixture(scope="module")
def data(aiida_profile):
    frames = emt_frames(12)
    split = split_frames(frames, test=0.2, val=0.2, seed=0, members=2)
    return {"dataset": DatasetData.from_frames(frames).store(), "split": split_node(split).store()}


_TRAINED: dict[str, tuple] = {}


@pytest.fixture
def trained(data, installed_train_code):
    """Outputs and node of three epochs from scratch, by the installed programs; run once."""
    if "first" not in _TRAINED:
        _TRAINED["first"] = run_get_node(NequipTrainCalculation, code=installed_train_code, settings=tiny(), **data)
    outputs, node = _TRAINED["first"]
    assert node.is_finished_ok, (node.exit_status, node.exit_message)
    return outputs, node


def run(code, data, **inputs):
    inputs.setdefault("settings", tiny())
    return run_get_node(NequipTrainCalculation, code=code, **data, **inputs)


# -- real trainings -----------------------------------------------------------------------------------------------


@pytest.mark.nequip
def test_outputs(trained, data):
    outputs, node = trained
    potential, summary = outputs["potential"], outputs["summary"].get_dict()
    parts = data["split"].get_array("member_0")
    assert summary["frames_seen"] == summary["frames_train"] == (parts == 0).sum()
    assert summary["ending"] == "completed"
    assert potential.metrics["best_epoch"] == summary["best_epoch"]
    assert potential.metrics["validation"]["val_force_rmse_ev_per_ang"] > 0
    assert set(potential.reference_energies["emt"]) == {"Cu"}
    # the frames are in the dataset, not once more in the job
    assert set(node.base.repository.list_object_names()) == {CONFIG_FILE, ".aiida", "_aiidasubmit.sh"}


@pytest.mark.nequip
def test_the_programs_of_the_tests_do_what_the_installed_ones_do(trained, data, train_code):
    """Most trainings of these tests are forks of a process that has imported NequIP: the same package, bit by bit."""
    outputs, node = run(train_code, data)
    assert node.is_finished_ok, node.exit_message
    assert outputs["potential"].sha256 == trained[0]["potential"].sha256
    told, expected = (each["summary"].get_dict() for each in (outputs, trained[0]))
    assert {**told, "wall_seconds": None} == {**expected, "wall_seconds": None}


@pytest.mark.nequip
def test_restart_is_the_uninterrupted_training(trained, data, train_code):
    """Resume after stop = uninterrupted: the same errors in the same epochs; curves go on."""
    first, _ = trained
    settings = tiny(max_epochs=5)
    resumed, node = run(train_code, data, settings=settings, restart_folder=first["remote_folder"])
    assert node.is_finished_ok, node.exit_message
    straight, node = run(train_code, data, settings=settings)
    assert node.is_finished_ok, node.exit_message
    assert resumed["curves"].get_array("epoch").tolist() == [0, 1, 2, 3, 4]
    name = "val_force_rmse_ev_per_ang"
    np.testing.assert_allclose(resumed["curves"].get_array(name), straight["curves"].get_array(name), rtol=1e-4)


@pytest.mark.nequip
@pytest.mark.parametrize("port", ["initial_potential", "initial_folder"])
def test_warm_start_begins_where_the_other_ended(trained, data, train_code, port):
    first, _ = trained
    source = first["potential"] if port == "initial_potential" else first["remote_folder"]
    settings = tiny(max_epochs=1, optimizer={"schedule": "constant", "learning_rate": 1e-6}, seed=5)
    outputs, node = run(train_code, data, settings=settings, **{port: source})
    assert node.is_finished_ok, node.exit_message
    name = "val_force_rmse_ev_per_ang"
    best = first["potential"].metrics["validation"][name]
    assert outputs["curves"].get_array(name)[0] == pytest.approx(best, rel=1e-2)
    assert outputs["potential"].reference_energies == first["potential"].reference_energies
    assert outputs["potential"].cutoff_ang == 4.0


@pytest.mark.nequip
def test_monitor_stops_a_growing_error(data, installed_train_code):
    monitor = orm.Dict(
        {
            "entry_point": "aiida_mlip.training_diverged",
            "kwargs": {"factor": 1.0001, "epochs": 1},
            "minimum_poll_interval": 1,
        }
    )
    settings = tiny(
        max_epochs=100_000,
        divergence_factor=1.0001,
        divergence_epochs=1,
        optimizer={"schedule": "constant", "learning_rate": 0.5},
    )
    outputs, node = run(installed_train_code, data, settings=settings, monitors={"divergence": monitor})
    assert node.exit_status == NequipTrainCalculation.exit_codes.ERROR_DIVERGED.status, node.exit_message
    assert outputs["summary"]["epochs"] < 100_000
    assert "curves" in outputs


@pytest.mark.nequip
def test_no_packager(data, installed_train_code, localhost, tmp_path):
    """nequip-train alone in a folder: trained, but no package; curves are kept."""
    program = tmp_path / "nequip-train"
    program.symlink_to(installed_train_code.filepath_executable)
    code = orm.InstalledCode(label="alone", computer=localhost, filepath_executable=str(program), with_mpi=False)
    outputs, node = run(code, data, settings=tiny(max_epochs=1))
    assert node.exit_status == NequipTrainCalculation.exit_codes.ERROR_NO_PACKAGE.status
    assert "No such file" in node.exit_message
    assert len(outputs["curves"].get_array("epoch")) == 1


# -- the restarting workchain ----------------------------------------------------------------------------------------


def run_base(code, data, settings, **inputs):
    nequip = {"code": code, "settings": settings, **data, **inputs.pop("nequip", {})}
    return run_get_node(NequipBaseWorkChain, nequip=nequip, **inputs)


@pytest.mark.nequip
@pytest.mark.slow
def test_walltime_goes_on_from_the_last_checkpoint(trained, data, train_code):
    """Through several jobs, also where the checkpoints refer to the weights the first of them started from."""
    settings = tiny(max_epochs=120, time_limit_s=3)
    source = {"initial_folder": trained[0]["remote_folder"]}
    outputs, node = run_base(train_code, data, settings, max_iterations=orm.Int(12), nequip=source)
    assert node.is_finished_ok, (node.exit_status, node.exit_message)
    jobs = [child for child in node.called if isinstance(child, orm.CalcJobNode)]
    if len(jobs) > 1:
        assert jobs[0].exit_status == NequipTrainCalculation.exit_codes.ERROR_WALLTIME.status
        assert "potential" in jobs[0].outputs  # what there was is kept
    epochs = [job.outputs.summary["epochs"] for job in jobs]
    assert len(jobs) > 1
    assert epochs == sorted(set(epochs))
    assert outputs["curves"].get_array("epoch").tolist() == list(range(120))
    assert outputs["summary"]["ending"] == "completed"
    assert outputs["potential"].reference_energies == trained[0]["potential"].reference_energies


@pytest.mark.nequip
@pytest.mark.slow
def test_divergence_lowers_the_rate_until_it_gives_up(data, train_code):
    settings = tiny(max_epochs=2, optimizer={"schedule": "constant", "learning_rate": 1e30})
    outputs, node = run_base(train_code, data, settings)
    assert node.exit_status == NequipBaseWorkChain.exit_codes.ERROR_STILL_DIVERGES.status
    jobs = [child for child in node.called if isinstance(child, orm.CalcJobNode)]
    assert [job.exit_status for job in jobs] == [NequipTrainCalculation.exit_codes.ERROR_NOT_FINITE.status] * 4
    rates = [float(job.outputs.summary["learning_rate"]) for job in jobs]
    np.testing.assert_allclose(np.array(rates[1:]) / np.array(rates[:-1]), 0.3)
    assert jobs[1].inputs.settings.creator.process_label == "lower_learning_rate"
    assert outputs["summary"]["ending"] == "not_finite"


@pytest.mark.nequip
def test_out_of_memory_takes_smaller_batches(data, installed_train_code):
    """Real lack of memory: a model of many GB in an address space that the shell limits."""
    options = {"prepend_text": "ulimit -v 6000000"}
    settings = tiny(batch_size=2, model={**TINY["model"], "num_features": 50_000, "num_layers": 2})
    _, node = run_base(installed_train_code, data, settings, nequip={"metadata": {"options": options}})
    assert node.exit_status == NequipBaseWorkChain.exit_codes.ERROR_STILL_OUT_OF_MEMORY.status, node.exit_message
    jobs = [child for child in node.called if isinstance(child, orm.CalcJobNode)]
    assert [job.outputs.summary["batch_size"] for job in jobs] == [2, 1]


def test_a_program_that_leaves_nothing_is_tried_twice(data, localhost):
    code = orm.InstalledCode(
        label="nothing", computer=localhost, filepath_executable=shutil.which("true"), with_mpi=False
    )
    _, node = run_base(code, data, tiny())
    assert node.exit_status == NequipBaseWorkChain.exit_codes.ERROR_NO_CHECKPOINT.status
    jobs = [child for child in node.called if isinstance(child, orm.CalcJobNode)]
    assert [job.exit_status for job in jobs] == [NequipTrainCalculation.exit_codes.ERROR_NO_CHECKPOINT.status] * 2


def handled(process, handler, exit_code, summary):
    """What a handler of a restarting workchain does with a training that ended like this."""
    node = orm.CalcJobNode(computer=orm.load_computer("localhost"))
    node.set_process_state("finished")
    node.set_exit_status(exit_code.status)
    node.store()
    for label, output in (("summary", orm.Dict(summary)), ("remote_folder", orm.RemoteData(remote_path="/x"))):
        output.computer = node.computer if label == "remote_folder" else None
        output.base.links.add_incoming(node, link_type=LinkType.CREATE, link_label=label)
        output.store()
    return getattr(process, handler)(node)


@pytest.fixture
def process(data, train_code):
    """A restarting workchain before its first step."""
    from aiida.engine.utils import instantiate_process
    from aiida.manage import get_manager

    nequip = {"code": train_code, "settings": tiny(), **data}
    chain = instantiate_process(get_manager().get_runner(), NequipBaseWorkChain, nequip=nequip)
    chain.setup()
    return chain


def test_walltime_without_progress_ends(process):
    first = handled(process, "handle_walltime", CODES.ERROR_WALLTIME, {"has_checkpoint": True, "epochs": 5})
    assert first.exit_code.status == 0
    assert process.ctx.inputs.restart_folder.get_remote_path() == "/x"
    again = handled(process, "handle_walltime", CODES.ERROR_WALLTIME, {"has_checkpoint": True, "epochs": 5})
    assert again.exit_code == process.exit_codes.ERROR_NO_PROGRESS


def test_walltime_is_not_followed_for_ever(process):
    for epochs in range(1, process.max_walltime + 1):
        report = handled(process, "handle_walltime", CODES.ERROR_WALLTIME, {"has_checkpoint": True, "epochs": epochs})
        assert report.exit_code.status == 0
    report = handled(process, "handle_walltime", CODES.ERROR_INCOMPLETE, {"has_checkpoint": True, "epochs": 99})
    assert report.exit_code == process.exit_codes.ERROR_MAXIMUM_ITERATIONS_EXCEEDED


def test_divergence_begins_again_from_the_best_epoch(process):
    process.ctx.inputs.restart_folder = orm.RemoteData(remote_path="/y", computer=orm.load_computer("localhost"))
    report = handled(process, "handle_divergence", CODES.ERROR_DIVERGED, {"best_epoch": 3})
    assert report.exit_code.status == 0
    assert process.ctx.inputs.initial_folder.get_remote_path() == "/x"
    assert "restart_folder" not in process.ctx.inputs
    assert process.ctx.inputs.settings.creator.process_label == "lower_learning_rate"


# -- refused before anything is submitted -----------------------------------------------------------------------------


def nodes():
    return orm.QueryBuilder().append(orm.Node).count()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": {"max_epoch": 3}}, "did you mean 'max_epochs'"),
        ({"settings": {**TINY, "member": 5}}, "no member_5"),
        ({"settings": {**TINY, "reference": "isolated"}}, "isolated atom of Cu"),
        ({"settings": {**TINY, "nequip": {"trainer": {"check_val_every_n_epoch": 3}}}}, "corrupts the checkpoints"),
        ({"split": "other"}, "not one of this dataset"),
    ],
)
def test_bad_input(data, train_code, change, message):
    inputs = {**data, "settings": tiny()}
    if "settings" in change:
        inputs["settings"] = orm.Dict(change["settings"])
    if "split" in change:
        inputs["split"] = split_node(split_frames(emt_frames(12, seed=3), test=0.2, val=0.2, seed=0))
    before = nodes()
    with pytest.raises(ValueError, match=message):
        run_get_node(NequipTrainCalculation, code=train_code, **inputs)
    assert nodes() == before


# -- parser: outputs that are hard to provoke -------------------------------------------------------------------------

METRICS = (
    "epoch,lr-Adam,step,val0_epoch/forces,val0_epoch/weighted_sum\n"
    ",0.01,0,,\n0,,3,0.5,0.5\n,0.01,4,,\n1,,7,0.4,0.4\n,0.01,8,,\n2,,11,0.3,0.3\n"
)
SEEN = "[x][nequip.data.stats_manager][INFO] - [rank: 0] num_frames: {}.0\n"


@pytest.fixture
def parse(data, localhost, tmp_path):
    """Parse a folder of files as the output of a training."""
    from aiida.plugins import ParserFactory

    def function(files: dict[str, str | bytes], *, retrieved: bool = True, **settings):
        node = orm.CalcJobNode(computer=localhost, process_type="aiida.calculations:aiida_mlip.nequip_train")
        node.set_option("output_filename", "train.out")
        node.set_option("scheduler_stderr", "_scheduler-stderr.txt")
        node.set_option("scheduler_stdout", "_scheduler-stdout.txt")
        node.set_option("resources", {"num_machines": 1, "num_mpiprocs_per_machine": 1})
        for name, value in {**data, "settings": tiny(**settings).store()}.items():
            node.base.links.add_incoming(value, link_type=LinkType.INPUT_CALC, link_label=name)
        config = "trainer: {max_epochs: 3}\nmodel_type_names: [Cu]\ndata: {transforms: [{r_max: 4.0}]}\n"
        node.base.repository.put_object_from_bytes(
            (config + "training_module: {model: {per_type_energy_shifts: {Cu: -1.0}}}\n").encode(), CONFIG_FILE
        )
        node.store()
        if retrieved:
            folder = orm.FolderData()
            for name, content in files.items():
                folder.base.repository.put_object_from_bytes(
                    content if isinstance(content, bytes) else content.encode(), name
                )
            folder.base.links.add_incoming(node, link_type=LinkType.CREATE, link_label="retrieved")
            folder.store()
        return ParserFactory("aiida_mlip.nequip_train").parse_from_node(node, store_provenance=False)

    return function


#: What the script writes when the program ended well, and packaging as told.
ENDED = "train 0\nseconds 5\nbest checkpoints/best.ckpt\npackage {}\n"


def n_train(data):
    return int((data["split"].get_array("member_0") == 0).sum())


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ({}, CODES.ERROR_NO_OUTPUT),
        ({"train.out": "Traceback\nValueError: no"}, CODES.ERROR_NO_CHECKPOINT),
        ({METRICS_FILE: "<html>proxy error</html>\n"}, CODES.ERROR_OUTPUT_TRUNCATED),
        ({METRICS_FILE: METRICS, "train.out": SEEN.format(1)}, CODES.ERROR_FRAMES_MISMATCH),
        ({METRICS_FILE: METRICS[:-20], "_scheduler-stderr.txt": "CANCELLED DUE TO TIME LIMIT"}, CODES.ERROR_WALLTIME),
        ({METRICS_FILE: METRICS, "train.out": "Time limit reached. Elapsed time"}, CODES.ERROR_WALLTIME),
        ({METRICS_FILE: METRICS[:-20], "train.err": "CUDA out of memory"}, CODES.ERROR_OUT_OF_MEMORY),
        ({METRICS_FILE: METRICS.replace("0.3,0.3", "nan,nan")}, CODES.ERROR_NOT_FINITE),
        ({METRICS_FILE: METRICS[:-20]}, CODES.ERROR_INCOMPLETE),
        ({METRICS_FILE: METRICS, STATUS_FILE: ENDED.format(1), "package.out": "pickle error"}, CODES.ERROR_NO_PACKAGE),
        (
            {METRICS_FILE: METRICS, STATUS_FILE: ENDED.format(0), "model.nequip.zip": b"PK\x03\x04 cut"},
            CODES.ERROR_NO_PACKAGE,
        ),
        ({METRICS_FILE: METRICS, STATUS_FILE: ENDED.format(137)}, CODES.ERROR_INCOMPLETE),  # killed while packaging
        ({METRICS_FILE: METRICS}, CODES.ERROR_INCOMPLETE),  # the script was killed after the program
    ],
)
def test_exit_codes(parse, files, code):
    results, process = parse(files)
    assert process.exit_status == code.status, process.exit_message
    if len(str(files.get(METRICS_FILE, ""))) > 100:
        assert len(results["curves"].get_array("epoch")) >= 2


def test_diverged_curve(parse):
    text = METRICS.replace("0.4,0.4", "90.0,90.0").replace("0.3,0.3", "90.0,90.0")
    _, node = parse({METRICS_FILE: text}, divergence_factor=10.0, divergence_epochs=2)
    assert node.exit_status == CODES.ERROR_DIVERGED.status


@pytest.mark.nequip
def test_the_count_of_frames_is_the_guard(parse, data, trained):
    """The same output is fine with the right count of frames."""
    first, _ = trained
    with first["potential"].open_package() as package:
        zipped = package.read()
    files = {METRICS_FILE: METRICS, "model.nequip.zip": zipped}
    results, process = parse({**files, "train.out": SEEN.format(n_train(data))})
    assert process.exit_status == 0
    assert isinstance(results["potential"], PotentialData)
    assert results["potential"].reference_energies == {"emt": {"Cu": -1.0}}
    results, process = parse(files)
    assert process.exit_status == CODES.ERROR_FRAMES_MISMATCH.status
    assert "unknown number" in process.exit_message
    assert "potential" in results


# -- monitor -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("values", "stops"), [([0.5, 0.4, 0.3], False), ([0.5, 90, 95], True), (["nan", "nan"], True)])
def test_monitor_reads_the_remote_file(localhost, tmp_path, values, stops):
    node = orm.CalcJobNode(computer=localhost)
    node.set_remote_workdir(str(tmp_path))
    with localhost.get_transport() as transport:
        assert training_diverged(node, transport, factor=10.0, epochs=2) is None
        lines = [f"{epoch},{value}" for epoch, value in enumerate(values)]
        Path(tmp_path / METRICS_FILE).parent.mkdir()
        Path(tmp_path / METRICS_FILE).write_text("\n".join(["epoch,val0_epoch/weighted_sum", *lines, ""]))
        result = training_diverged(node, transport, factor=10.0, epochs=2)
    assert (result is not None) == stops
    if stops:
        assert not result.override_exit_code
