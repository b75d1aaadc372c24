"""Scheduler options are checked before anything is submitted, in every workchain, by the name of the field."""

from __future__ import annotations

from importlib.metadata import entry_points

import pytest
from aiida import orm
from aiida.engine import PortNamespace
from aiida.plugins import CalculationFactory, WorkflowFactory
from emt_frames import emt_frames

from aiida_mlip.calculations.ase_label import AseLabelCalculation
from aiida_mlip.calculations.nequip_train import NequipTrainCalculation
from aiida_mlip.calculations.options import check_job_options
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.errors import ProtocolError
from aiida_mlip.workchains.active_learning import ActiveLearningWorkChain
from aiida_mlip.workchains.active_learning_inputs import validate_inputs as validate_active_learning
from aiida_mlip.workchains.generate import GenerateWorkChain
from aiida_mlip.workchains.generate_inputs import validate_generate_inputs
from aiida_mlip.workchains.label import LabelWorkChain
from aiida_mlip.workchains.label_inputs import validate_label_inputs

NAMES = sorted(e.name for e in entry_points(group="aiida.workflows") if e.name.startswith("aiida_mlip."))
EMT = {"emt": {"engine": "ase", "calculator": "ase.calculators.emt.EMT"}}
STASH = {"source_list": ["best.ckpt", "out/*.dat"], "target_base": "/archive/me", "stash_mode": "copy"}
GOOD = {"queue_name": "gpu", "max_wallclock_seconds": 60, "stash": STASH}
BAD = {
    "queue_name": ({"queue_name": "debug\nrm -rf ~"}, "queue_name"),
    "unknown": ({"max_wallclock_second": 60}, "max_wallclock_seconds"),
    "type": ({"max_wallclock_seconds": "an hour"}, "max_wallclock_seconds"),
    "resources": ({"resources": 4}, "resources"),
    "stash": ({"stash": {**STASH, "source_list": ["../../secret"]}}, "stash.source_list"),
}


def ports_of_options(namespace, path=()):
    """(path, port, namespace that has it) of each Dict of options."""
    for name, port in namespace.items():
        if name == "metadata":
            continue
        if isinstance(port, PortNamespace):
            yield from ports_of_options(port, (*path, name))
        elif name == "options" or path[-1:] == ("options",):
            yield (*path, name), port, namespace


def problem(port, namespace, options):
    """What is said about options; ports of labels are checked with their fidelities."""
    given = orm.Dict(options)
    if (error := port.validate(given)) is not None:
        return error.message
    if "fidelities" not in namespace:
        return None
    return namespace.validator({"options": given, "fidelities": orm.Dict(EMT)}, namespace)


@pytest.mark.parametrize("name", NAMES)
def test_every_workchain_refuses_them(name, aiida_profile):
    n_nodes = orm.QueryBuilder().append(orm.Node).count()
    for path, port, namespace in ports_of_options(WorkflowFactory(name).spec().inputs):
        if "seed" in namespace or (len(path) == 1 and "reuse" in namespace):
            continue  # checked together with all other inputs, see below
        for options, field in BAD.values():
            assert field in str(problem(port, namespace, options)), (path, options)
        assert problem(port, namespace, GOOD) is None, path
    assert orm.QueryBuilder().append(orm.Node).count() == n_nodes


@pytest.mark.parametrize(("options", "field"), BAD.values(), ids=list(BAD))
def test_of_labels_explorations_and_generations(options, field, label_code):
    frames = DatasetData.from_frames(emt_frames(2))
    given = {"codes": {"ase": label_code}, "dataset": frames, "fidelities": orm.Dict(EMT)}
    assert validate_label_inputs(given, LabelWorkChain.spec().inputs) is None
    said = validate_label_inputs({**given, "options": orm.Dict(options)}, LabelWorkChain.spec().inputs)
    assert said.startswith("options of the engine ase")
    assert field in said
    exploration = {"structures": frames, "spec": orm.Dict({"watch": {}}), "options": orm.Dict(options)}
    given = {"settings": orm.Dict({}), "explorations": {"hot": exploration}}
    said = validate_active_learning(given, ActiveLearningWorkChain.spec().inputs)
    assert field in said
    forces = {"calculator": "ase.calculators.emt.EMT"}
    md = {"generator": "md", "n_steps": 4, "record_every": 2, "temperature_k": 50, "forces": forces}
    given = {"spec": orm.Dict({"steps": [md]}), "structures": frames, "codes": {"explore": label_code}}
    assert validate_generate_inputs(given, GenerateWorkChain.spec().inputs) is None
    for of_codes in (options, {"explore": options}):
        said = validate_generate_inputs({**given, "options": orm.Dict(of_codes)}, GenerateWorkChain.spec().inputs)
        assert field in said
        assert "options of explore" in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source_list": []}, "source_list"),
        ({"source_list": "best.ckpt"}, "source_list"),
        ({"source_list": ["/etc/passwd"]}, "source_list"),
        ({"source_list": ["a b"]}, "source_list"),
        ({"source_list": ["$(touch canary)"]}, "source_list"),
        ({"source_list": ["--checkpoint-action=exec"]}, "source_list"),
        ({"target_base": "archive"}, "target_base"),
        ({"target_base": "/archive; rm"}, "target_base"),
        ({"target_base": "/archive/../etc"}, "target_base"),
        ({"stash_mode": "zip"}, "stash_mode"),
        ({"stash_mode": "submit_custom_code"}, "stash_mode"),
        ({"stash_mode": "tar.gz"}, "dereference"),
        ({"stash_mode": "copy", "dereference": True}, "dereference"),
        ({"fail_on_missing": "yes"}, "fail_on_missing"),
        ({"where": "/archive"}, "where"),
    ],
)
def test_what_cannot_be_stashed(change, message, aiida_profile):
    with pytest.raises(ProtocolError, match=message):
        check_job_options({"stash": {**STASH, **change}}, NequipTrainCalculation)


@pytest.mark.parametrize("missing", list(STASH))
def test_a_stash_says_everything(missing, aiida_profile):
    given = {name: value for name, value in STASH.items() if name != missing}
    with pytest.raises(ProtocolError, match=rf"options\.stash\.{missing}: missing"):
        check_job_options({"stash": given}, NequipTrainCalculation)


JOBS = [AseLabelCalculation, NequipTrainCalculation, CalculationFactory("quantumespresso.pw")]


@pytest.mark.parametrize("process", JOBS)
def test_what_can_be_stashed(process, aiida_profile):
    check_job_options({"stash": STASH}, process)
    check_job_options({"stash": {**STASH, "stash_mode": "tar.gz", "dereference": False}}, process)
    check_job_options({"stash": {**STASH, "source_list": ["best.ckpt"], "fail_on_missing": True}}, process)
    with pytest.raises(ProtocolError, match="stash: 'all of it' is no mapping"):
        check_job_options({"stash": "all of it"}, process)
