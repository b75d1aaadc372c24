"""Reports of stored campaigns: complete, running, failed, of hostile names, and in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from aiida import orm
from click.testing import CliRunner
from report_checks import check_report
from stored_campaign import SETTINGS, Campaign, campaign

from aiida_mlip.cli.main import main
from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.frames import from_ase
from aiida_mlip.report.content import Number, Table
from aiida_mlip.report.drawing import draw
from aiida_mlip.report.html import column_class, shown
from aiida_mlip.report.sections.parity import MOST_POINTS, cloud
from aiida_mlip.report.sections.properties import _number
from aiida_mlip.report.write import collect_report

HOSTILE = "<script>alert('x')</script>\"'&{{7*7}}$\\frac{"


@pytest.fixture(scope="module")
def finished(aiida_profile) -> Campaign:
    return campaign()


@pytest.fixture(scope="module")
def told_in(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("told")


@pytest.fixture(scope="module")
def told(finished, told_in):
    """The report of the finished campaign, its page and its content, checked."""
    return check_report(finished.root, told_in)


@pytest.fixture(scope="module")
def page_of(finished, told, told_in) -> Path:
    """HTML file of the finished campaign."""
    return told_in / f"{finished.root.pk}.html"


def by_key(content: dict) -> dict[str, dict]:
    return {section["key"]: section for section in content["sections"]}


def test_a_campaign_is_told_completely(told):
    report, _, content = told
    assert report.verdict.word == "Budget spent"
    assert "3 rounds are done" in report.verdict.sentence
    assert content["missing"] == []
    sections = by_key(content)
    expected = {"rounds", "training", "parity", "calibration", "dataset", "fragments", "costs", "failures", "asked"}
    assert expected <= set(sections)
    figures = {figure["key"] for section in sections.values() for figure in section["figures"]}
    assert {
        "rounds-error",
        "rounds-novelty",
        "reliability",
        "map-Cu",
        "map-Au",
        "fragment-0",
        "costs-stages",
    } <= figures
    assert {
        "parity-force-invented-Cu",
        "parity-force-invented-Au",
        "parity-energy-invented",
        "parity-stress-invented",
    } <= figures


def test_numbers_are_those_of_the_nodes(finished, told):
    content = told[2]
    sections = by_key(content)
    errors = finished.root.outputs.errors
    headline = {fact["name"]: fact for fact in content["headline"]}
    error = headline["force RMSE, held out"]
    assert error["uuids"] == [errors.uuid]
    assert error["value"] == pytest.approx(errors["test"]["force_rmse_ev_per_ang"], rel=1e-5)
    rounds = finished.root.outputs.history["rounds"]
    table = next(table for table in sections["rounds"]["tables"] if table["title"] == "Rounds")
    column = table["columns"].index("held-out force RMSE (eV/Å)")
    assert [row[column]["value"] for row in table["rows"]] == pytest.approx([one["force_rmse"] for one in rounds])
    # a round's number comes from the record that first has it
    records = [orm.load_node(row[0]["uuids"][0]) for row in table["rows"]]
    assert [len(record["rounds"]) for record in records] == [1, 2, 3]
    # the diagram passes through the coverage that the calibration states
    (diagram,) = (figure for figure in sections["calibration"]["figures"] if figure["key"] == "reliability")
    curve = diagram["data"]["series"][0]
    coverage = next(fact for fact in sections["calibration"]["facts"] if fact["name"].startswith("coverage"))
    at_level = curve["y"][int(np.argmin(np.abs(np.array(curve["x"]) - 0.9)))]
    assert 100 * at_level == pytest.approx(coverage["value"], abs=1e-3)
    assert at_level > 0.8


def test_failures_are_told_by_class_with_the_process(told):
    content = told[2]
    section = by_key(content)["failures"]
    facts = {fact["name"]: fact["value"] for fact in section["facts"]}
    assert facts["failed labels"] == 3
    # per round: a base workchain with its job, and the first job of one that was restarted
    assert facts["processes that went wrong"] == 9
    assert facts["of those, recovered by a restart"] == 3
    table = next(table for table in section["tables"] if table["title"] == "What failed labels said")
    assert [orm.load_node(row[2]["uuids"][0]).process_label for row in table["rows"]] == ["PwBaseWorkChain"] * 3
    costs = by_key(content)["costs"]
    budget = next(table for table in costs["tables"] if table["title"].startswith("Budget"))
    assert [row[2]["value"] for row in budget["rows"]] == [3, 100.0, "no limit given"]
    forecast = next(table for table in costs["tables"] if table["title"] == "Labels: forecast and spent")
    assert [row[3]["value"] for row in forecast["rows"]] == pytest.approx([30 / 36] * 3, rel=1e-5)


def test_a_running_process_gives_a_partial_report(tmp_path):
    alive = campaign(rounds=2, alive=True)
    report, page, content = check_report(alive.root, tmp_path)
    assert report.verdict.tone == "running"
    assert "round_01_train" in report.verdict.sentence
    assert any("round 1 is not complete" in text for text in content["missing"])
    assert any("round_01_train" in text and "no errors" in text for text in content["missing"])
    assert "This report is partial" in page.text
    # what the round before reached is there
    assert {"parity", "calibration", "dataset"} <= set(by_key(content))


@pytest.mark.parametrize(
    ("state", "status", "message", "word"),
    [
        ("finished", 300, "No frames were generated.", "Failed"),
        ("finished", 400, "More labels failed than allowed", "Incomplete"),
        ("excepted", None, "Traceback\nValueError: the disk is full", "Excepted"),
        ("killed", None, "", "Killed"),
        ("running", None, "", "Not finished"),
        ("created", None, "", "Not finished"),
    ],
)
def test_a_process_that_reached_nothing_says_what_is_missing(state, status, message, word, tmp_path, aiida_profile):
    node = orm.WorkChainNode(process_type="aiida.workflows:aiida_mlip.develop")
    node.set_process_label("DevelopWorkChain")
    node.set_process_state(state)
    if status is not None:
        node.set_exit_status(status)
        node.set_exit_message(message)
    elif message:
        node.set_exception(message)
    node.store()
    report, _, content = check_report(node, tmp_path)
    assert report.verdict.word == word
    assert message.splitlines()[-1] in report.verdict.sentence if message else True
    missing = " ".join(content["missing"])
    for name in ("Training", "Parity", "Dataset"):
        assert name in missing


def test_every_other_kind_of_process_has_a_report_too(tmp_path, finished):
    """Of each kind that the campaign called, and of a process of another package."""
    nodes = {node.process_label: node for node in finished.root.called_descendants}
    assert {"TrainWorkChain", "LabelWorkChain", "ExploreWorkChain", "PwBaseWorkChain", "select"} <= set(nodes)
    kinds = ("TrainWorkChain", "LabelWorkChain", "ExploreWorkChain", "PwBaseWorkChain")
    contents = {name: check_report(nodes[name], tmp_path)[2] for name in kinds}
    assert {"training", "parity", "calibration"} <= set(by_key(contents["TrainWorkChain"]))
    assert contents["TrainWorkChain"]["missing"] == []
    assert by_key(contents["LabelWorkChain"])["failures"]["facts"][0]["value"] == 1
    assert "rounds" in by_key(contents["ExploreWorkChain"])


def test_hostile_names_are_text(tmp_path):
    node = campaign(rounds=1, description=HOSTILE, fidelity=HOSTILE, generator=HOSTILE)
    node.root.label = HOSTILE
    _, page, content = check_report(node.root, tmp_path)
    html = (tmp_path / f"{node.root.pk}.html").read_text(encoding="utf-8")
    assert "<script" not in html
    assert "{{" in "".join(page.text)
    assert "49" not in content["title"]
    assert content["title"].startswith(HOSTILE)
    assert HOSTILE in "".join(page.text)


def test_the_same_numbers_give_the_same_pictures(told):
    figures = [figure for section in told[0].sections for figure in section.figures]
    one_of_each = {figure.kind: figure for figure in figures}
    assert len(one_of_each) >= 6
    for figure in one_of_each.values():
        assert draw(figure) == draw(figure)


def test_many_points_become_a_density_that_counts_each(rng):
    x = rng.normal(size=MOST_POINTS + 5000)
    y = x + 0.1 * rng.normal(size=len(x))
    found = cloud(x, y)
    cells = np.asarray(found["density"]["cells"])
    assert cells[:, 2].sum() == len(x) == found["n"]
    assert len(found["x"]) <= 100
    assert np.abs(found["y"] - found["x"]).max() == np.abs(y - x).max()
    # a point lies in the cell that is drawn for it
    low, high = found["density"]["x_range"]
    column = np.minimum(((x - low) / (high - low) * found["density"]["bins"]).astype(int), found["density"]["bins"] - 1)
    assert np.array_equal(np.unique(column), np.unique(cells[:, 0]))


def test_a_dataset_of_two_levels_gets_panels_of_each(tmp_path):
    """Parity is drawn per level of theory."""
    node = campaign(rounds=1)
    frames = node.labelled(20, "rattle")
    half = frames.take(np.arange(10)).with_columns(fidelities=("rough",))
    frames = from_frames(half, frames.take(np.arange(10, 20)))
    dataset = DatasetData.from_frames(frames, settings={"invented": SETTINGS, "rough": SETTINGS}).store()
    node.train("round_01_train", dataset, frames, 0.1, alive=False)
    _, _, content = check_report(node.root, tmp_path)
    keys = {figure["key"] for figure in by_key(content)["parity"]["figures"]}
    assert {"parity-energy-invented", "parity-energy-rough", "parity-force-rough-Cu"} <= keys


def from_frames(*parts):
    from aiida_mlip.kernel.frames import concatenate

    return concatenate(list(parts))


def test_properties_stand_beside_their_reference(aiida_profile, tmp_path):
    """What a validation leaves: entries with verdicts, and curves of the potential and of the reference."""
    made = campaign(rounds=1, members=2, labels=2, start=12)
    node = made.process(
        orm.WorkChainNode, "ValidateWorkChain", "aiida.workflows:aiida_mlip.validate", caller=made.root,
        label="validate", status=500, message="The potential misses: bulk_modulus_gpa",
    )  # fmt: skip
    compare = made.process(orm.CalcFunctionNode, "compare", "", caller=node, label="compare")
    common = {"structure": 0, "family": "a0", "definition": "", "uuids": [], "error_bar": None, "reason": ""}
    entries = [
        {**common, "name": "a0_ang", "value": 3.61, "unit": "Å", "error_bar": 0.002, "reference": 3.6,
         "difference": 0.01, "threshold": {"absolute": 0.02, "relative": None}, "passed": True},
        {**common, "name": "bulk_modulus_gpa", "value": 99.0, "unit": "GPa", "reference": 140.0, "difference": -41.0,
         "threshold": {"relative": 0.1}, "passed": False, "reason": "29 % off"},
        {**common, "name": "elastic_constants_gpa", "value": [170.0, None], "unit": "GPa", "reference": None,
         "difference": None, "threshold": None, "passed": None},
        {**common, "name": "dimer", "structure": -1, "value": None, "unit": "", "reference": None, "difference": None,
         "threshold": {"at_least": 1.0}, "passed": None, "reason": "no value"},
    ]  # fmt: skip
    properties = orm.Dict({"entries": entries})
    counts = {"n_passed": 1, "n_failed": 1, "n_not_judged": 2, "missed": ["structure 0: bulk_modulus_gpa: 29 % off"]}
    verdict = orm.Dict({"verdict": "failed", **counts})
    made.made(compare, properties=properties, verdict=verdict)
    curves = {}
    for source in ("subject_00", "reference"):
        calculation = made.process(orm.CalcFunctionNode, "property_values", "", caller=node, label=f"values_{source}")
        curves[f"curves__{source}"] = orm.ArrayData(property_arrays())
        made.made(calculation, curves=curves[f"curves__{source}"])
    made.returned(node, properties=properties, verdict=verdict, **curves)

    report, _, content = check_report(node, tmp_path)
    assert report.verdict.word == "Target not met"
    section = by_key(content)["properties"]
    assert [table["title"] for table in section["tables"]] == ["Of no one structure", "Structure 0"]
    cells = [[cell["value"] for cell in row] for row in section["tables"][1]["rows"]]
    assert cells[0][:8] == ["a0 ang", 3.61, 0.002, 3.6, 0.01, "Å", "±0.02", "passed"]
    assert cells[1][6:] == ["±10 %", "failed", "29 % off"]
    assert cells[2][1] == "170, –"
    figures = {figure["key"]: figure for figure in section["figures"]}
    assert {
        "eos-s0_eos_volume_ang3_per_atom",
        "bands-s0_",
        "rdf-s0_rdf_radius_ang_300k",
        "dimer-dimer_Cu_Cu_distance_ang",
    } <= set(figures)
    assert figures["bands-s0_"]["data"]["ticks"]["names"] == ["Γ", "X|U", "Γ"]
    eos = figures["eos-s0_eos_volume_ang3_per_atom"]["data"]["series"]
    assert [series["name"] for series in eos] == ["subject 00", "reference"]
    assert min(eos[0]["y"]) == 0.0
    # the campaign that called it says so at its head
    _, _, whole = check_report(made.root, tmp_path)
    assert whole["headline"][0]["value"] == "failed"


def property_arrays():
    x = np.linspace(0.0, 2.0, 20)
    return {
        "s0_eos_volume_ang3_per_atom": 11 + x[:7],
        "s0_eos_energy_ev_per_atom": (x[:7] - 0.3) ** 2 - 3.5,
        "s0_bands_distance": x,
        "s0_bands_frequency_thz": np.abs(np.sin(np.outer(x, [1, 2, 3]))) * 8,
        "s0_bands_piece_lengths": np.array([10, 10]),
        "s0_bands_labels": np.array(["G", "X", "U", "G"]),
        "s0_rdf_radius_ang_300k": x,
        "s0_rdf_300k": np.exp(-x),
        "dimer_Cu_Cu_distance_ang": 1 + x,
        "dimer_Cu_Cu_energy_ev": 1 / (1 + x) ** 6,
    }


# -- the command ---------------------------------------------------------------------------------------------------


def test_the_command_says_where_the_report_lies(finished, tmp_path):
    html, plain = tmp_path / "r.html", tmp_path / "r.json"
    result = CliRunner().invoke(main, ["report", str(finished.root.pk), "-o", str(html), "--json", str(plain)])
    assert result.exit_code == 0, result.output
    assert str(html) in result.output
    assert str(plain) in result.output
    assert "Budget spent" in result.output
    assert json.loads(plain.read_text())["process"]["uuid"] == finished.root.uuid


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["99999999"], "no process '99999999'"),
        (["DATA"], "not a process"),
        (["ROOT", "-o", "no/such/folder.html"], "no file can be"),
    ],
)
def test_the_command_refuses_what_it_cannot_do(arguments, message, finished, aiida_profile):
    names = {"DATA": str(orm.Int(1).store().pk), "ROOT": str(finished.root.pk)}
    result = CliRunner().invoke(main, ["report", *(names.get(word, word) for word in arguments)])
    assert result.exit_code == 1, result.output
    assert message in result.output


def test_data_has_no_report(aiida_profile):
    with pytest.raises(InvalidInputError, match="is no process"):
        collect_report(orm.Int(1).store())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.00571, "−0.00571"),
        (12345.6, "12\u202f346"),
        (2.5e7, "2.5×10⁷"),
        (1e-12, "1×10⁻¹²"),
        (float("nan"), "–"),
        (123456, "123\u202f456"),
    ],
)
def test_numbers_are_readable(value, text):
    assert shown(Number(value)) == text


def test_tables_have_as_many_cells_as_headings(told):
    for section in told[0].sections:
        for table in section.tables:
            assert isinstance(table, Table)
            assert {len(row) for row in table.rows} <= {len(table.columns)}, table.title


# -- in a browser --------------------------------------------------------------------------------------------------


def browser(page: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine (`make system` installs it where that is permitted)")
    command = [program, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'browser'}"]
    command += ["--enable-logging=stderr", "--log-level=0", "--hide-scrollbars", *arguments, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def test_a_browser_shows_it_without_errors(page_of, told, tmp_path):
    """Chromium lays out every figure on a phone and a desktop, says nothing on the console, and overflows nowhere."""
    done = browser(page_of, tmp_path, "--dump-dom", "--virtual-time-budget=5000")
    assert done.returncode == 0, done.stderr
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line], done.stderr
    n_figures = sum(len(section.figures) for section in told[0].sections)
    assert done.stdout.count("<figure") == n_figures


@pytest.mark.parametrize(("width", "medium"), [(390, "screen"), (1280, "screen"), (688, "print")])
def test_it_overflows_nowhere(page_of, tmp_path, width, medium):
    """Nothing is wider than a phone, a desktop, or A4 within its margins (182 mm); there tables cannot be scrolled."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page_of.read_text(encoding="utf-8"))
    if medium == "print":
        assert "@media print" in text
        text = text.replace("@media print", "@media all")
    measure = "document.title=[innerWidth,document.documentElement.scrollWidth].join(' ')"
    page = tmp_path / "measured.html"
    page.write_text(text.replace("</body>", f"<script>{measure}</script></body>"), encoding="utf-8")
    done = browser(page, tmp_path, f"--window-size={width},2000", "--dump-dom", "--virtual-time-budget=5000")
    inner, needed = map(int, re.search(r"<title>(\d+) (\d+)</title>", done.stdout).groups())
    assert needed <= inner <= max(width, 500)  # some browsers have no narrower window


@pytest.mark.parametrize(
    ("column", "found"),
    [
        ((1, 2.5, None), "r"),
        ((True, False), ""),
        ((None,), ""),
        (("passed", "failed"), ""),
        (("passed", "harmonic, at the own equilibrium volume, imaginary modes are negative"), "text"),
        (("code pw@localhost: /a/very/long/path/to/some/program.x",), "long"),
    ],
)
def test_how_a_column_is_set(column, found):
    table = Table("t", ("a", "b"), tuple((Number("x"), Number(value)) for value in column))
    assert column_class(table, 1) == found


def test_noise_in_a_list_of_numbers_is_zero():
    """Acoustic modes at Γ; a list that is small all over is not noise."""
    assert _number([-2.0e-7, 8e-8, 13.19], ()).value == "0, 0, 13.19"
    assert _number([-2.0e-7, None, 1e-7], ()).value == "−2e−07, –, 1e−07"


@pytest.mark.parametrize("width", [500, 1280])
def test_a_screenshot_has_the_figures_in_it(page_of, tmp_path, width):
    """Colours of the figures are seen: the images were decoded, not only placed."""
    from PIL import Image

    picture = tmp_path / "page.png"
    done = browser(page_of, tmp_path, f"--window-size={width},9000", f"--screenshot={picture}")
    assert done.returncode == 0, done.stderr
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):
        assert (np.abs(pixels.astype(int) - colour).sum(axis=1) < 6).sum() > 1000
    assert image.size[0] == width


def test_it_prints(page_of, tmp_path):
    paper = tmp_path / "page.pdf"
    done = browser(page_of, tmp_path, f"--print-to-pdf={paper}", "--no-pdf-header-footer")
    assert done.returncode == 0, done.stderr
    data = paper.read_bytes()
    assert data.startswith(b"%PDF")
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", data)) <= 40


def test_nothing_but_frames_with_labels_is_needed(tmp_path, si8):
    """A labelling that was given a dataset and has not begun: the dataset it was given is shown."""
    node = orm.WorkChainNode(process_type="aiida.workflows:aiida_mlip.label")
    node.set_process_label("LabelWorkChain")
    node.set_process_state("waiting")
    dataset = DatasetData.from_frames(from_ase([si8.to_ase(0)])).store()
    from aiida.common.links import LinkType

    node.base.links.add_incoming(dataset, LinkType.INPUT_WORK, "dataset")
    node.store()
    _, _, content = check_report(node, tmp_path)
    assert by_key(content)["dataset"]["facts"][0]["value"] == 1
    assert any("no labels" in text for text in content["missing"])
