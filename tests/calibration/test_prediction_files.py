"""Files of predictions of every kind: the same numbers, or one line, and never more memory than the file is worth."""

import csv
import json
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from scipy import special

from lm.calibration.predictions import Predictions, check_disjoint
from lm.errors import UserError

N, C = 12, 3
RANDOM = np.random.default_rng(0)
PROBABILITIES = special.softmax(RANDOM.normal(size=(N, C)), axis=1)
LABELS = RANDOM.integers(C, size=N)
NAMES = ("cat", "dog", "my bird")
IDS = [f"item {i}" for i in range(N)]


def refused(path, **named) -> str:
    with pytest.raises(UserError) as caught:
        Predictions.load(path, **named)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_equal(found: Predictions, names=NAMES):
    np.testing.assert_allclose(special.softmax(found.logits, axis=1), PROBABILITIES, atol=1e-6)
    np.testing.assert_array_equal(found.labels_N, LABELS)
    assert found.ids_N.tolist() == IDS
    assert found.class_names == names


# --- tables ---


def rows(names=NAMES, label=lambda label: NAMES[label]):
    header = ["id", "label", *(f"probability_{name}" for name in names), "text"]
    return [header, *([IDS[i], label(LABELS[i]), *PROBABILITIES[i], f"text; of {i}"] for i in range(N))]


@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("csv", ";"), ("tsv", "\t")])
def test_tables_have_a_column_for_each_class(suffix, delimiter, tmp_path):
    path = tmp_path / f"predictions.{suffix}"
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows())
    found = Predictions.load(str(path))
    assert_equal(found)
    assert found.unused == ("text",)


def test_numbered_columns_are_ordered_by_number(tmp_path):
    path = tmp_path / "predictions.csv"
    order = [0, 1, 4, 2, 3, 5]  # the columns of classes 2, 0, 1
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([[row[i] for i in order] for row in rows(range(C), lambda label: f"{label}.0")])
    assert_equal(Predictions.load(path), names=None)


def test_json_holds_arrays_or_rows(tmp_path):
    arrays = {"labels": LABELS.tolist(), "probabilities": PROBABILITIES.tolist(), "ids": IDS, "class_names": NAMES}
    records = [
        {"id": IDS[i], "label": int(LABELS[i]), "probabilities": PROBABILITIES[i].tolist(), "weight": i}
        for i in range(N)
    ]
    files = {"a.json": json.dumps(arrays), "b.json": json.dumps(records, indent=1)}
    files["c.jsonl"] = "\n".join(map(json.dumps, records)) + "\n"
    for name, content in files.items():
        (tmp_path / name).write_text(content)
        found = Predictions.load(tmp_path / name)
        assert_equal(found, NAMES if name == "a.json" else None)
        assert (found.weights_N is None) == (name == "a.json")


def test_npy_holds_a_structured_array(tmp_path):
    table = np.zeros(N, [("ids", "U9"), ("labels", np.int64), ("probabilities", np.float64, C)])
    table["ids"], table["labels"], table["probabilities"] = IDS, LABELS, PROBABILITIES
    np.save(tmp_path / "a.npy", table)
    assert_equal(Predictions.load(tmp_path / "a.npy"), names=None)
    np.save(tmp_path / "b.npy", PROBABILITIES)
    assert "one array, float64 (12, 3)" in refused(tmp_path / "b.npy")


def test_parquet_needs_pyarrow(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        assert "pip install pyarrow" in refused(tmp_path / "a.parquet")
        return
    refused(tmp_path / "a.parquet")
    header, *items = rows()
    parquet.write_table(pyarrow.table(dict(zip(header, zip(*items, strict=True), strict=True))), tmp_path / "b.parquet")
    assert_equal(Predictions.load(tmp_path / "b.parquet"))


def test_one_column_is_class_1_of_two(tmp_path):
    path = tmp_path / "predictions.csv"
    path.write_text("label,probability\n1,0.9\n0,0.25\n")
    found = Predictions.load(path)
    np.testing.assert_allclose(special.softmax(found.logits, axis=1), [[0.1, 0.9], [0.75, 0.25]], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "the array `labels` is missing"),
        ("a.csv", "1,0.9\n0,0.25\n", "must name the columns"),
        ("a.csv", "label,probability\n", "at least 1 item"),
        ("a.csv", "label,probability\n1\n", "line 2 has 1 fields, the header 2"),
        ("a.csv", "label,probability\n1,\n", "`probability` of item 0 is missing"),
        ("a.csv", "label,probability\n1,high\n", "`probability` of item 0 is 'high'"),
        ("a.csv", "label,probability\n1,90\n0,25\n", "percentages"),
        ("a.csv", "label,probability\nyes,0.5\n", "labels are text, such as 'yes'"),
        ("a.csv", "label,probability_a,probability_b\nc,0.5,0.5\n", "label 'c' of item 0"),
        ("a.csv", "label,probability_1,probability_2\n1,0.5,0.5\n", "from 0"),
        ("a.csv", "label,label,probability\n1,1,0.5\n", "twice"),
        ("a.csv", "label,probability,probability_0\n1,1,0.5\n", "twice"),
        ("a.csv", "label,probability_a,probability_b\na,0.33,0.66\n", "normalize=True"),
        ("a.csv", "label,logit_a,logit_b,probability\na,1,2,0.5\n", "not logits and probabilities"),
        ("a.csv", b"label,probability\n\xff,0.5\n", "not in UTF-8"),
        ("a.csv", "label,probability\n1,0.9\n".encode("utf-16"), "save it as UTF-8"),
        ("a.csv", "label,probability_0\n1,0.9\n", "a column for class 0 alone"),
        ("a.csv", "label,probability_1\n1,0.9\n", "a column for class 1 alone"),
        ("a.csv", "label;probability\n1;0,9\n", "write decimals with a point"),
        ("a.csv", "label,probability\n1,0.9_5\n", "is '0.9_5', not a number"),
        ("a.csv", "label,probability\n1_0,0.5\n", "labels are text"),
        ("a.csv", 'label,probability\n1,"0.5\n', "not a csv file"),
        ("a.json", "", "not a json file"),
        ("a.json", "5", "an object of arrays or a list of objects, not a int"),
        ("a.json", "[]", "no rows"),
        ("a.json", '[{"label": 1}, [2]]', "row 1 must be an object"),
        ("a.json", '[{"label": 1}, {"labels": 1}]', "row 1 must be an object with the same keys"),
        ("a.json", '{"labels": 1}', "must be a list"),
        ("a.json", '{"labels": [1], "labels": [0], "probability": [0.5]}', "`labels` is there twice"),
        ("a.jsonl", '{"label": 1, "probability": 0.5, "label": 0}', "`label` is there twice"),
        ("a.json", '{"labels": [[0, 1]], "probability": [0.5]}', "not lists"),
        ("a.json", '{"labels": [true, 0], "probability": [0.5, 0.5]}', "use one of them"),
        ("a.json", '{"labels": [1, NaN], "probability": [0.5, 0.5]}', "`labels` of item 1 is missing"),
        ("a.json", '{"labels": [1, 0], "clusters": [NaN, "a"], "probability": [0.5, 0.5]}', "`clusters` of item 0"),
        ("a.json", '{"labels": ["a"], "class_names": ["a", "a"], "logits": [[1, 2]]}', "class_names has 'a' twice"),
        ("a.json", '{"labels": [1, 0], "logits": [[1, 2], [1]]}', "equally many numbers"),
        ("a.json", '{"labels": [1, 0], "logits": [[1, 2], [1, true]]}', "is 'True', not a number"),
        ("a.json", '{"labels": [1, 0.5], "logits": [[1, 2], [1, 2]]}', "labels must be integers"),
        ("a.json", '{"labels": [1, 1' + 400 * "0" + '], "logits": [[1, 2], [1, 2]]}', "labels must hold numbers"),
        ("a.json", 10**5 * "[", "not a json file"),
        ("a.jsonl", '{"label": 1}\n{', "line 2 is not JSON"),
        ("a.txt", "label", "read from files that end in .npz"),
        ("a.npy", "text", "not an npy file"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_a_bad_table_is_one_line(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert message in refused(tmp_path / name)


@pytest.mark.parametrize("names", [("1", "-1"), ("0_1", "0_0"), ("1.5", "0"), ("a, b", "c, d"), ("TRUE", "FALSE")])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_labels_are_names_of_classes_though_they_look_like_numbers(names, delimiter, tmp_path):
    path = tmp_path / "predictions.csv"
    with path.open("w", newline="") as file:
        header = ["label", *(f"probability_{name}" for name in names)]
        csv.writer(file, delimiter=delimiter).writerows([header, [names[1], 0.2, 0.8], [names[0], 0.7, 0.3]])
    found = Predictions.load(path)
    assert found.class_names == names
    assert found.labels_N.tolist() == [1, 0]


def test_true_and_false_are_classes_1_and_0(tmp_path):
    path = tmp_path / "predictions.csv"
    path.write_text("label,probability\nTrue,0.9\nFALSE,0.25\n")
    assert Predictions.load(path).labels_N.tolist() == [1, 0]


def test_bytes_are_text(tmp_path):
    labels, names = np.array([b"b", b"a"]), np.array([b"a", "é".encode()])
    npz(tmp_path / "a.npz", logits=np.eye(2), labels=labels, class_names=np.array([b"a", b"b"]), ids=labels)
    found = Predictions.load(tmp_path / "a.npz")
    assert found.labels_N.tolist() == [1, 0]
    assert found.ids_N.tolist() == ["b", "a"]
    npz(tmp_path / "b.npz", logits=np.eye(2), labels=[0, 1], class_names=names)
    assert Predictions.load(tmp_path / "b.npz").class_names == ("a", "é")
    npz(tmp_path / "c.npz", logits=np.eye(2), labels=[0, 1], class_names=np.array([b"a", b"\xff"]))
    assert "UTF-8" in refused(tmp_path / "c.npz")


def test_names_of_classes_may_be_a_list():
    judged = Predictions(np.eye(2), np.array([0, 1]), class_names=["wrong", "right"])
    assert judged.class_names == ("wrong", "right")
    assert judged.outcomes().correct_N.tolist() == [0, 1]


def test_a_parquet_file_that_claims_too_much_is_not_unpacked(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"label": np.zeros(10**7, np.int64), "probability": np.zeros(10**7)})
    parquet.write_table(table, tmp_path / "a.parquet", compression="zstd")
    assert (tmp_path / "a.parquet").stat().st_size < 10**5
    assert "claim 20,000,000 values" in refused(tmp_path / "a.parquet")


def test_rounded_probabilities_are_normalized_where_asked(tmp_path):
    path = tmp_path / "predictions.csv"
    path.write_text("label,probability_a,probability_b,probability_c\na,0.33,0.33,0.33\nb,20,30,50\n")
    found = Predictions.load(path, normalize=True)
    np.testing.assert_allclose(special.softmax(found.logits, axis=1), [[1 / 3] * 3, [0.2, 0.3, 0.5]], atol=1e-6)


# --- ids ---


def test_without_ids_nothing_is_said_to_be_shared():
    one = Predictions(np.log(PROBABILITIES), LABELS)
    named = Predictions(np.log(PROBABILITIES), LABELS, np.array(IDS))
    some = one.select(np.arange(5))
    assert "no ids" in check_disjoint(some, one)
    assert "no ids" in check_disjoint(named, some)
    with pytest.raises(UserError, match="the same 12 items"):
        check_disjoint(one, named)
    with pytest.raises(UserError, match="share 12 ids"):
        check_disjoint(named, named)
    assert check_disjoint(named.select(np.arange(5)), named.select(np.arange(5, N))) == ""


def test_classes_in_another_order_are_an_error():
    one, other = (Predictions(np.log(PROBABILITIES), LABELS, class_names=names) for names in (NAMES, NAMES[::-1]))
    with pytest.raises(UserError, match="class_names"):
        check_disjoint(one, other)


# --- damaged and hostile npz files ---


def npz(path, **arrays) -> bytes:
    np.savez(path, **arrays)
    return path.read_bytes()


def good(path, **more) -> bytes:
    return npz(path, probabilities=PROBABILITIES, labels=LABELS, ids=np.array(IDS), class_names=np.array(NAMES), **more)


def header(shape: str, dtype: str = "<f8") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text + b"\n"


def test_names_that_are_not_used_are_told_and_not_read(tmp_path):
    good(tmp_path / "a.npz", logit_scale=np.ones(3), notes=np.array([{}], dtype=object))
    found = Predictions.load(tmp_path / "a.npz")
    assert_equal(found)
    assert set(found.unused) == {"logit_scale", "notes"}
    npz(tmp_path / "b.npz", probs=PROBABILITIES, labels=LABELS)
    assert "besides: probs" in refused(tmp_path / "b.npz")


def test_fortran_order_and_empty_arrays_are_read(tmp_path):
    npz(tmp_path / "a.npz", probabilities=np.asfortranarray(PROBABILITIES), labels=LABELS)
    np.testing.assert_array_equal(Predictions.load(tmp_path / "a.npz").labels_N, LABELS)
    npz(tmp_path / "b.npz", probabilities=PROBABILITIES[:0], labels=LABELS[:0])
    assert "at least 1 item" in refused(tmp_path / "b.npz")


@pytest.mark.parametrize(
    "shape", ["(2000000000000,)", "(2000000, 1000000)", "(-3, -4)", "(" + 30 * "9" + ",)", "((3,),)", "'x'", "(3.5,)"]
)
@pytest.mark.parametrize("dtype", ["<f8", "<U0", "|V0"])
def test_a_header_that_claims_terabytes_allocates_nothing(shape, dtype, tmp_path):
    path = tmp_path / "a.npz"
    for stated in (None, 2**44):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("labels.npy", header("(3,)", "<i8") + b"\0" * 24)
            archive.writestr("logits.npy", header(shape, dtype) + b"\0" * 96)
        if stated:  # the directory of the archive claims it too
            content = bytearray(path.read_bytes())
            place = content.rindex(b"PK\x01\x02")
            content[place + 24 : place + 28] = struct.pack("<I", 2**32 - 2)
            path.write_bytes(content)
        tracemalloc.start()
        refused(path)
        assert tracemalloc.get_traced_memory()[1] < 2**24
        tracemalloc.stop()


def test_bombs_are_not_unpacked(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("labels.npy", header("(3,)", "<i8") + b"\0" * 24)
        with archive.open("logits.npy", "w") as file:
            file.write(header("(12500000, 2)"))
            for _ in range(200):
                file.write(b"\0" * 10**6)
    assert "would unpack from" in refused(path)


def test_encrypted_and_overlapping_members_are_one_line(tmp_path):
    path = tmp_path / "a.npz"
    content = bytearray(good(path))
    encrypted = content.copy()
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        encrypted[encrypted.index(signature) + offset] |= 1
    path.write_bytes(encrypted)
    assert "encrypted" in refused(path)
    unknown = content.copy()
    for signature, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        unknown[unknown.index(signature) + offset] = 14
    path.write_bytes(unknown)
    assert "compressed in an unknown way" in refused(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("labels.npy", header("(3,)", "<i8") + b"\0" * 24)
        archive.writestr("labels", header("(3,)", "<i8") + b"\0" * 24)
    assert "twice" in refused(path)


@pytest.mark.parametrize("suffix", ["npz", "npy", "csv", "json"])
@pytest.mark.filterwarnings("ignore")
def test_damage_is_one_line_or_the_right_numbers(suffix, tmp_path):
    """Random bytes changed, cut, doubled or inserted: a `UserError`, or finite numbers of the right shapes."""
    path = tmp_path / f"a.{suffix}"
    whole = example(path)
    rng = np.random.default_rng(zlib.crc32(suffix.encode()))
    said = []
    for _ in range(250):
        path.write_bytes(damaged(whole, rng))
        try:
            found = Predictions.load(path)
        except UserError as error:
            said.append(str(error))
            continue
        items, classes = found.logits.shape
        assert found.labels_N.shape == (items,)
        assert 0 <= found.labels_N.min() <= found.labels_N.max() < classes
        assert np.isfinite(found.logits.max(axis=1)).all()
        if suffix == "npz":  # whose sums tell every damage
            assert_equal(found)
    assert len(said) > 20
    assert not any("\n" in message for message in said)


def example(path) -> bytes:
    if path.suffix == ".npz":
        return good(path)
    if path.suffix == ".npy":
        table = np.zeros(N, [("labels", np.int64), ("probabilities", np.float64, C)])
        table["labels"], table["probabilities"] = LABELS, PROBABILITIES
        np.save(path, table)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows(rows())
    else:
        path.write_text(json.dumps({"labels": LABELS.tolist(), "probabilities": PROBABILITIES.tolist()}))
    return path.read_bytes()


def damaged(whole: bytes, rng: np.random.Generator) -> bytes:
    start, length = int(rng.integers(len(whole))), int(rng.integers(1, 9))
    noise = bytes(rng.integers(0, 256, length, np.uint8))
    kind = rng.integers(5)
    if kind == 0:
        return whole[:start]
    if kind == 1:
        return whole[:start] + noise + whole[start:]
    if kind == 2:
        return whole[:start] + whole[start + length :]
    if kind == 3:
        return whole[:start] + whole[start : start + 40] + whole[start:]
    return whole[:start] + noise + whole[start + length :]
