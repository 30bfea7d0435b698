"""Decisions applied to data of every form, and what is refused."""

import bz2
import gzip
import json
import lzma
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from bilevax import InputError
from bilevax.applications.denoising.review import Decision, Decisions, apply_decisions, short_digest
from bilevax.data.samples.read import Options, read_samples


def source_of(path, **options):
    return read_samples(path, options=Options(**options)).source


def decided(source, *items):
    return Decisions("mine", short_digest(source.digest), tuple(items))


# --- text -----------------------------------------------------------------------------------------------------------

PETS = 'id,size,kind\r\na,"1,0","cat"\r\n\r\nb,  2.50,dog\r\nc,"3\r\n0",dog \r\nd,4e0,cat'


def test_only_the_cells_of_the_labels_change(tmp_path):
    path, out = tmp_path / "pets.csv", tmp_path / "out.csv"
    path.write_bytes(PETS.encode())
    source = source_of(path, target="kind", keep=("id",))
    decisions = decided(
        source,
        Decision(0, "cat", "correct", "dog", 2, "a"),
        Decision(2, "dog", "correct", "cat"),
        Decision(1, "dog", "keep", "dog"),
        Decision(3, "cat", "correct", "cat"),
    )
    log = apply_decisions(source, decisions, out)
    assert out.read_bytes().decode() == PETS.replace('"cat"', '"dog"').replace("dog \r\n", "cat\r\n")
    assert path.read_bytes() == PETS.encode()
    assert log.astype(object).where(log.notna(), None).to_numpy().tolist() == [
        [0, 2, "a", "cat", "correct", "dog"],
        [2, None, None, "dog", "correct", "cat"],
    ]
    assert list(log.columns) == ["row", "line", "id", "given_label", "decision", "label"]


def test_records_of_dropped_samples_go(tmp_path):
    path = tmp_path / "pets.csv"
    path.write_bytes(PETS.encode())
    source = source_of(path, target="kind")
    log = apply_decisions(
        source, decided(source, Decision(2, "dog", "drop", ""), Decision(3, "cat", "drop", "")), tmp_path / "out.csv"
    )
    assert (tmp_path / "out.csv").read_bytes().decode() == PETS[: PETS.index('c,"3')]
    assert log["decision"].tolist() == ["drop", "drop"]


PACK = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda content: pa.compress(content, "zstd", asbytes=True),
}
UNPACK = {"gz": gzip.decompress, "bz2": bz2.decompress, "xz": lzma.decompress}


@pytest.mark.parametrize("kind", [*PACK, "zip"])
def test_compression_stays(tmp_path, kind):
    path, out = tmp_path / f"pets.csv.{kind}", tmp_path / f"out.csv.{kind}"
    content = b"size,kind\n" + b"1,cat\n2,dog\n2,cat\n" * 20
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("inner.csv", content)
    else:
        path.write_bytes(PACK[kind](content))
    source = source_of(path, target="kind")
    apply_decisions(source, decided(source, Decision(0, "cat", "correct", "dog")), out)
    wanted = content.replace(b"cat", b"dog", 1)
    if kind == "zip":
        with zipfile.ZipFile(out) as archive:
            assert archive.namelist() == ["inner.csv"]
            assert archive.read("inner.csv") == wanted
    elif kind == "zst":
        with pa.input_stream(str(out), compression="zstd") as stream:
            assert stream.read() == wanted
    else:
        assert UNPACK[kind](out.read_bytes()) == wanted


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "cp1252"])
def test_encoding_stays_with_its_mark(tmp_path, encoding):
    path, out = tmp_path / "pets.csv", tmp_path / "out.csv"
    text = "size;kind\n" + "1;Bär\n2;Hündin\n2;Bär\n" * 20
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
    path.write_bytes(mark + text.encode(encoding))
    source = source_of(path, target="kind")
    apply_decisions(source, decided(source, Decision(1, "Hündin", "correct", "Bär")), out)
    assert out.read_bytes() == mark + text.replace("Hündin", "Bär", 1).encode(encoding)


def test_a_label_is_written_as_the_file_writes_it(tmp_path):
    """Labels that are whole numbers may be written 3.0, truth values true; one that needs quotation marks gets some."""
    for cells, given, label, wanted in [
        (["1.0", "2.0", "2.0", "1.0"], "1", "2", "2.0"),
        (["true", "false", "true", "false"], "True", "False", "false"),
        (["a", '"b,c"', "a", '"b,c"'], "a", "b,c", '"b,c"'),
        (["a", '"say ""b"""', "a", '"say ""b"""'], "a", 'say "b"', '"say ""b"""'),
    ]:
        path, out = tmp_path / "labels.csv", tmp_path / "out.csv"
        path.write_text("kind,size\n" + "".join(f"{cell},{i}.5\n" for i, cell in enumerate(cells)))
        source = source_of(path, target="kind")
        apply_decisions(source, decided(source, Decision(0, given, "correct", label)), out)
        assert out.read_text() == path.read_text().replace(cells[0], wanted, 1)
        out.unlink()


def test_rows_count_records_as_the_reader_does(tmp_path):
    """Blank records are none, and records that are too long keep their number."""
    path, out = tmp_path / "pets.csv", tmp_path / "out.csv"
    text = "size,kind\n\n1,cat\n   \n2,dog,too,long\n3,dog\n,\n4,cat\n"
    path.write_text(text)
    samples = read_samples(path, options=Options(target="kind"))
    rows = dict(zip(samples.lines.tolist(), samples.record.tolist(), strict=True))
    items = [Decision(rows[6], "dog", "correct", "cat"), Decision(rows[8], "cat", "correct", "dog")]
    apply_decisions(samples.source, decided(samples.source, *items), out)
    assert out.read_text() == text.replace("3,dog", "3,cat").replace("4,cat", "4,dog")


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (Decision(4, "cat", "drop", ""), "a decision about row 4, and .* has 4 rows, 0 to 3"),
        (Decision(0, "dog", "drop", ""), "row 0 is said to have the label 'dog', and has 'cat'"),
        (Decision(0, "cat", "correct", "dgo"), "row 0 gets the label 'dgo', which is no class .* Did you mean 'dog'"),
    ],
)
def test_decisions_that_do_not_fit_the_data(tmp_path, item, message):
    path, out = tmp_path / "pets.csv", tmp_path / "out.csv"
    path.write_bytes(PETS.encode())
    source = source_of(path, target="kind")
    with pytest.raises(InputError, match=message):
        apply_decisions(source, decided(source, item), out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pets.csv"]


def test_data_that_changed_since_and_an_output_that_exists(tmp_path):
    path, out = tmp_path / "pets.csv", tmp_path / "out.csv"
    path.write_bytes(PETS.encode())
    source = source_of(path, target="kind")
    decisions = decided(source, Decision(0, "cat", "correct", "dog"))
    with pytest.raises(InputError, match="exists, and is not overwritten"):
        apply_decisions(source, decisions, path)
    path.write_bytes(PETS.encode() + b"\r\n")
    with pytest.raises(InputError, match="it changed since the review, or is another file"):
        apply_decisions(source_of(path, target="kind"), decisions, out)
    with pytest.raises(InputError, match="more than one decision about row 0"):
        apply_decisions(source, decisions._replace(items=decisions.items * 2), out)
    dropped = [Decision(i, label, "drop", "") for i, label in enumerate(["cat", "dog", "dog", "cat"])]
    with pytest.raises(InputError, match="drops all 4 samples"):
        apply_decisions(source, decided(source, *dropped), out)
    assert not out.exists()


# --- other forms ----------------------------------------------------------------------------------------------------


def test_parquet_keeps_schema_metadata_and_row_groups(tmp_path):
    path, out = tmp_path / "pets.parquet", tmp_path / "out.parquet"
    kinds = pa.DictionaryArray.from_arrays(pa.array([0, 1, 1, 0, None, 1], pa.int8()), ["cat", "dog", "unused"])
    table = pa.table(
        {"size": pa.array([1, 2, 3, 4, 5, 6], pa.float32()), "kind": kinds, "note": [["x"], [], None, [], [], []]}
    )
    table = table.replace_schema_metadata({"owner": "ann"})
    pq.write_table(
        table, path, row_group_size=2, compression={"size": "zstd", "kind": "gzip", "note.list.element": "none"}
    )
    source = source_of(path, target="kind")
    items = [Decision(0, "cat", "correct", "dog"), Decision(5, "dog", "correct", "cat"), Decision(2, "dog", "drop", "")]
    apply_decisions(source, decided(source, *items), out)
    found = pq.ParquetFile(out)
    assert found.schema_arrow.equals(pq.ParquetFile(path).schema_arrow, check_metadata=True)
    assert found.metadata.num_row_groups == 3
    assert [found.metadata.row_group(0).column(i).compression for i in range(3)] == ["ZSTD", "GZIP", "UNCOMPRESSED"]
    written = found.read()
    assert written.column("kind").to_pylist() == ["dog", "dog", "cat", None, "cat"]
    assert written.column("size").to_pylist() == [1, 2, 4, 5, 6]
    assert set(written.column("kind").combine_chunks().dictionary.to_pylist()) == {"cat", "dog", "unused"}


@pytest.mark.parametrize(
    ("labels", "given", "label", "wanted"),
    [
        (pa.array([1, 2, 2, 1], pa.int16()), "1", "2", [2, 2, 2, 1]),
        (pa.array([1.0, 2.0, None, 1.0]), "1", "2", [2.0, 2.0, None, 1.0]),
        (pa.array([True, False, True, True]), "True", "False", [False, False, True, True]),
        (pa.array(["a", "b", " a", "b"], pa.large_string()), "a", "b", ["b", "b", " a", "b"]),
    ],
)
def test_parquet_labels_of_every_type(tmp_path, labels, given, label, wanted):
    path, out = tmp_path / "x.parquet", tmp_path / "out.parquet"
    pq.write_table(pa.table({"x": [0.5, 1.5, 2.5, 4.0], "y": labels}), path)
    source = source_of(path, target="y")
    apply_decisions(source, decided(source, Decision(0, given, "correct", label)), out)
    assert pq.read_table(out).column("y").to_pylist() == wanted
    assert pq.read_table(out).schema.equals(pq.read_table(path).schema, check_metadata=True)


def test_a_datasets_folder(tmp_path):
    folder, out = tmp_path / "set", tmp_path / "out"
    folder.mkdir()
    names = []
    for i in range(2):
        table = pa.table({"x": [0.5 + i, 1.5, 2.0], "label": pa.array([0, 1, i], pa.int64())})
        names.append(f"data-0000{i}-of-00002.arrow")
        with pa.OSFile(str(folder / names[-1]), "wb") as stream, pa.ipc.new_stream(stream, table.schema) as writer:
            writer.write_table(table)
    (folder / "state.json").write_text(
        json.dumps({"_data_files": [{"filename": n} for n in names], "_fingerprint": "1"})
    )
    features = {
        "x": {"dtype": "float64", "_type": "Value"},
        "label": {"names": ["cat", "dog", "cow"], "_type": "ClassLabel"},
    }
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    source = source_of(folder)
    items = [Decision(1, "dog", "correct", "cow"), Decision(5, "dog", "correct", "cat"), Decision(3, "cat", "drop", "")]
    apply_decisions(source, decided(source, *items), out)
    tables = [pa.ipc.open_stream(pa.OSFile(str(out / name))).read_all() for name in names]
    assert [table.column("label").to_pylist() for table in tables] == [[0, 2, 0], [1, 0]]
    assert json.loads((out / "state.json").read_text())["_fingerprint"] != "1"
    assert (out / "dataset_info.json").read_bytes() == (folder / "dataset_info.json").read_bytes()


def test_npz_keeps_its_other_arrays(tmp_path):
    path, out = tmp_path / "x.npz", tmp_path / "out.npz"
    X, y = np.random.default_rng(0).normal(size=(5, 3)), np.array(["cat", "bird", "cat", "bird", "cat"])
    np.savez_compressed(path, X=X, y=y, ids=np.arange(5), scale=np.array(2.0), classes=np.array(["bird", "cat"]))
    source = source_of(path)
    items = [Decision(0, "cat", "correct", "bird"), Decision(3, "bird", "drop", "")]
    apply_decisions(source, decided(source, *items), out)
    with np.load(out) as found:
        assert found["y"].tolist() == ["bird", "bird", "cat", "cat"]
        assert found["y"].dtype == y.dtype
        assert np.array_equal(found["X"], X[[0, 1, 2, 4]])
        assert found["ids"].tolist() == [0, 1, 2, 4]
        assert found["scale"] == 2.0
        assert found["classes"].tolist() == ["bird", "cat"]
    assert zipfile.ZipFile(out).getinfo("X.npy").compress_type == zipfile.ZIP_DEFLATED


def test_npz_without_dropped_samples_has_the_same_bytes_elsewhere(tmp_path):
    path, out = tmp_path / "x.npz", tmp_path / "out.npz"
    np.savez(path, X=np.asfortranarray(np.eye(4)), y=np.array([1.0, 2.0, 1.0, 2.0]))
    source = source_of(path)
    apply_decisions(source, decided(source, Decision(2, "1", "correct", "2")), out)
    before, after = zipfile.ZipFile(path), zipfile.ZipFile(out)
    assert before.read("X.npy") == after.read("X.npy")
    assert np.load(out)["y"].tolist() == [1.0, 2.0, 2.0, 2.0]


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    for i, place in enumerate(["cat/1.png", "cat/2.png", "dog/1.png", "dog/deep/3.png"]):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((9, 9), 40 * i, np.uint8)).save(folder / place)
    (folder / "notes.txt").write_text("mine")
    return folder


def test_a_folder_of_pictures(tmp_path, pictures):
    out = tmp_path / "out"
    samples = read_samples(pictures)
    place = {name: i for i, name in enumerate(samples.identifiers)}
    rows = [int(samples.record[place[name]]) for name in ("cat/1.png", "dog/deep/3.png", "cat/2.png")]
    items = [
        Decision(rows[0], "cat", "correct", "dog", None, "cat/1.png"),
        Decision(rows[1], "dog", "correct", "cat", None, "dog/deep/3.png"),
        Decision(rows[2], "cat", "drop", "", None, "cat/2.png"),
    ]
    log = apply_decisions(samples.source, decided(samples.source, *items), out)
    found = {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert set(found) == {"cat/deep/3.png", "dog/1.png", "dog/1-from-cat.png", "notes.txt"}
    assert found["dog/1-from-cat.png"] == (pictures / "cat/1.png").read_bytes()
    assert found["dog/1.png"] == (pictures / "dog/1.png").read_bytes()
    assert len(list(pictures.rglob("*.png"))) == 4
    assert log["new_id"].tolist()[:2] == ["dog/1-from-cat.png", "cat/deep/3.png"]
    assert log["new_id"].isna().tolist() == [False, False, True]


@pytest.mark.parametrize("identifier", [None, "../pictures/cat/1.png", "/etc/hosts", "cat/9.png"])
def test_a_folder_refuses_paths_that_are_no_pictures_in_it(tmp_path, pictures, identifier):
    source = source_of(pictures)
    decision = Decision(0, "cat", "correct", "dog", None, identifier)
    with pytest.raises(InputError, match=r"no id|is no picture"):
        apply_decisions(source, decided(source, decision), tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pictures"]
    with pytest.raises(InputError, match="is in the folder of the data"):
        apply_decisions(source, decided(source, decision), pictures / "out")
