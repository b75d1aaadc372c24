"""Looking inside model packages: nothing is executed, everything damaged is refused."""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiida_mlip.errors import FileFormatError
from aiida_mlip.io import model_package
from aiida_mlip.io.model_package import read_package

METADATA = "atom_types: {0: Si, 1: C}\navailable_models: [eager]\npackage_version_id: 2\nversions: {nequip: 0.19.1}\n"
CONFIG = "training_module:\n  model: {_target_: x, model: {r_max: 4.5, model_dtype: float64}}\n"


def package(members: dict[str, bytes] | None = None, *, compression: int = zipfile.ZIP_STORED) -> io.BytesIO:
    """A well-formed little package, with members added or replaced."""
    content = {
        "m/model/package_metadata.txt": METADATA.encode(),
        "m/model/config.yaml": CONFIG.encode(),
        "m/model/eager_model.pkl": b"\x80\x02N.",
        **(members or {}),
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    buffer.seek(0)
    return buffer


def test_reads_the_plain_text_of_a_real_package(toy_package: Path) -> None:
    with toy_package.open("rb") as stream:
        found = read_package(stream, source="toy")
        assert stream.tell() == 0
    assert found.type_names == ("Si", "C")
    assert found.cutoff_ang == 4.0
    assert found.model_dtype == "float64"
    assert set(found.versions) >= {"nequip", "torch"}
    assert "eager" in found.available_models
    assert found.size_bytes == toy_package.stat().st_size


def test_nested_model_sections_and_their_absence() -> None:
    found = read_package(package(), source="x")
    assert (found.cutoff_ang, found.model_dtype) == (4.5, "float64")
    fine_tuned = b"training_module: {model: {_target_: y}}\ndata: {transforms: [{r_max: 6.0}]}\n"
    assert read_package(package({"m/model/config.yaml": fine_tuned}), source="x").cutoff_ang == 6.0
    assert read_package(package({"m/model/config.yaml": b"a: {r_max: -1}"}), source="x").cutoff_ang is None


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fraction=st.floats(0, 0.9999))
def test_a_truncated_package_is_refused(toy_package: Path, fraction: float) -> None:
    data = toy_package.read_bytes()
    with pytest.raises(FileFormatError, match=r"cut\.zip"):
        read_package(io.BytesIO(data[: int(fraction * len(data))]), source="cut.zip")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fraction=st.floats(0, 0.9999), bit=st.integers(0, 7))
def test_a_changed_bit_is_an_error_or_another_hash(toy_package: Path, fraction: float, bit: int) -> None:
    data = bytearray(toy_package.read_bytes())
    original = read_package(io.BytesIO(bytes(data)), source="x").sha256
    data[int(fraction * len(data))] ^= 1 << bit
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zipfile on duplicate names and odd headers
            changed = read_package(io.BytesIO(bytes(data)), source="x").sha256
    except FileFormatError:
        return
    assert changed != original


def test_a_changed_bit_of_content_is_a_checksum_error() -> None:
    data = package().getvalue().replace(b"0: Si", b"0: Ge")
    with pytest.raises(FileFormatError, match="CRC"):
        read_package(io.BytesIO(data), source="x")


class Bomb:
    """Runs code when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.write_text, (self.target, "executed"))


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    target = tmp_path / "trace"
    bomb = pickle.dumps(Bomb(target))
    read_package(package({"m/model/eager_model.pkl": bomb, "m/model/example_data.pkl": bomb}), source="x")
    assert not target.exists()
    pickle.loads(bomb)  # noqa: S301 - the bomb works
    assert target.read_text() == "executed"


@pytest.mark.parametrize("name", ["/etc/passwd", "m/../../x", "..\\x", "C:/x", "m\\x"])
def test_unsafe_names(name: str) -> None:
    with pytest.raises(FileFormatError, match="unsafe member name"):
        read_package(package({name: b"x"}), source="x")


def test_links() -> None:
    buffer = package()
    with zipfile.ZipFile(buffer, "a") as archive:
        info = zipfile.ZipInfo("m/link")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    buffer.seek(0)
    with pytest.raises(FileFormatError, match="is a link"):
        read_package(buffer, source="x")


def test_bombs(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileFormatError, match="more than 100 times"):
        read_package(package({"m/zeros": bytes(10**6)}, compression=zipfile.ZIP_DEFLATED), source="x")
    monkeypatch.setattr(model_package, "MAX_BYTES", 1000)
    with pytest.raises(FileFormatError, match=r"larger than the limit|inflates to"):
        read_package(package({"m/big": b"ab" * 400}), source="x")
    mixed = bytes(range(100)) * 20
    with pytest.raises(FileFormatError, match="inflates to"):
        read_package(package({"m/big": mixed}, compression=zipfile.ZIP_DEFLATED), source="x")
    monkeypatch.setattr(model_package, "MAX_MEMBERS", 2)
    with pytest.raises(FileFormatError, match="3 members"):
        read_package(package(), source="x")
    monkeypatch.setattr(model_package, "MAX_MEMBERS", 10)
    monkeypatch.setattr(model_package, "MAX_TEXT", 10)
    with pytest.raises(FileFormatError, match="more than 10"):
        read_package(package(), source="x")


def test_an_alias_loop_in_the_configuration_ends() -> None:
    loop = b"training_module: &a\n  model: {self: *a, r_max: 3.0}\n"
    assert read_package(package({"m/model/config.yaml": loop}), source="x").cutoff_ang == 3.0


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"other/model/x": b""}, "single top folder"),
        ({"m/model/package_metadata.txt": b"atom_types: {1: Si}"}, "no atom types"),
        ({"m/model/package_metadata.txt": b"atom_types: {}"}, "no atom types"),
        ({"m/model/package_metadata.txt": b"[1, 2]"}, "not a mapping"),
        ({"m/model/package_metadata.txt": b"a: [unclosed"}, "not readable YAML"),
        ({"m/model/package_metadata.txt": b"!!python/object/apply:os.getcwd []"}, "not readable YAML"),
        ({"m/model/config.yaml": b"\xff\xfe\x00"}, "not readable YAML"),
    ],
)
def test_not_a_package(members: dict[str, bytes], message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        read_package(package(members), source="x")


def test_a_zip_without_a_model_and_a_file_that_is_no_zip() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("m/model/package_metadata.txt", METADATA)
    with pytest.raises(FileFormatError, match="holds no model"):
        read_package(buffer, source="x")
    with pytest.raises(FileFormatError, match=r"letter\.txt: not a readable model package"):
        read_package(io.BytesIO(b"Dear sir"), source="letter.txt")
