"""Many classes of few pictures: Omniglot, mini-ImageNet, a folder of folders. No test leaves this machine."""

import functools
import io
import os
import re
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from bilevax import InputError
from bilevax.data import ClassSplit, DownloadError, class_folders, folders, mini_imagenet, omniglot, rotated
from bilevax.data import classes as data_classes

# Three characters of the background's two alphabets, two of the evaluation's one, in the order of the data set: the
# background first, though the evaluation's alphabet comes before in the alphabet.
CHARACTERS = (
    ("images_background/Futurama/character01", "0242"),
    ("images_background/Futurama/character02", "0105"),
    ("images_background/Korean/character01", "0017"),
    ("images_evaluation/Angelic/character01", "0965"),
    ("images_evaluation/Angelic/character02", "0001"),
)


@functools.cache
def ink():
    """Where the 20 drawings of each character have ink."""
    rng = np.random.default_rng(0)
    strokes = rng.random((len(CHARACTERS), 20, 15, 15)) < 0.2
    return strokes.repeat(7, axis=2).repeat(7, axis=3)


@functools.cache
def expected():
    """What becomes of them: ink is 255, paper is 0, and Lanczos' filter takes 105 x 105 to 28 x 28."""
    small = [
        np.asarray(Image.fromarray(np.where(drawing, 255, 0).astype(np.uint8)).resize((28, 28), Image.LANCZOS))
        for drawing in ink().reshape(-1, 105, 105)
    ]
    return np.stack(small).reshape(-1, 20, 28, 28)


def png(array):
    out = io.BytesIO()
    Image.fromarray(array).save(out, "PNG")
    return out.getvalue()


@functools.cache
def members():
    """The drawings as published: black on white, a bit for each pixel, the first drawing is _01."""
    found = {
        f"{folder}/{number}_{drawer:02}.png": png(~drawing)
        for (folder, number), drawings in zip(CHARACTERS, ink(), strict=True)
        for drawer, drawing in enumerate(drawings, 1)
    }
    assert Image.open(io.BytesIO(next(iter(found.values())))).mode == "1"
    return found


def zipped(files):
    """An archive whose members come in another order than that of their names."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("images/", b"")
        for name in reversed(files):
            archive.writestr(name, files[name])
    return out.getvalue()


def zips(**changed):
    """The two published archives, of the drawings or of others."""
    files = members() | changed
    return [
        zipped({name: content for name, content in files.items() if content and name.startswith(f"images_{part}/")})
        for part in ("background", "evaluation")
    ]


def classes(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def left_in(folder):
    return sorted(os.listdir(folder)) if folder.is_dir() else []


@pytest.fixture
def given(tmp_path, monkeypatch):
    """The folder that BILEVAX_DATA names. It is empty, and so is the cache."""
    folder = tmp_path / "given"
    folder.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("BILEVAX_DATA", str(folder))
    return folder


# --- Omniglot: download ---------------------------------------------------------------------------------------------


def test_omniglot_is_fetched_once_converted_and_kept(web):
    web.put("_OMNIGLOT", zips(), "good")
    found = omniglot(train=3, rotations=False)
    assert all(part.dtype == np.uint8 for part in found)
    assert np.array_equal(found.train, expected()[:3])
    assert found.val.shape == (0, 20, 28, 28)
    assert np.array_equal(found.test, expected()[3:])
    assert left_in(web.cache) == ["omniglot.npz"]
    with np.load(web.cache / "omniglot.npz") as kept:
        assert kept.files == ["images"]
        assert np.array_equal(kept["images"], expected())
    fetched = list(web.log)
    assert fetched == [("good", "images_background.zip"), ("good", "images_evaluation.zip")]
    again = omniglot(train=3, rotations=False)
    assert all(np.array_equal(a, b) for a, b in zip(again, found, strict=True))
    assert web.log == fetched


def test_strokes_are_white_on_black_and_stay_where_they_are(web):
    drawing = np.ones((105, 105), bool)
    drawing[10:35, 60:100] = False  # a block of ink, above and to the right
    name = next(iter(members()))
    web.put("_OMNIGLOT", zips(**{name: png(drawing)}), "good")
    picture = omniglot(train=3, rotations=False).train[0, 0]
    assert (picture[4:8, 18:25] > 240).all()
    assert (picture[14:] == 0).all()
    assert (picture[:, :12] == 0).all()


def test_a_failed_download_of_omniglot_is_said_and_leaves_nothing(web):
    web.put("_OMNIGLOT", zips(), "missing", "wrong")
    with pytest.raises(DownloadError, match=r"404.*images_background.zip gave \d+ bytes with MD5") as caught:
        omniglot(train=3)
    sentence = str(caught.value)
    for part in (f"omniglot is not in {web.cache / 'omniglot.npz'} (the cache)", "omniglot.npz (arrays images, all"):
        assert part in sentence
    assert left_in(web.cache) == []


FIRST = "images_background/Futurama/character01/0242_01.png"


def flipped():
    """The archives, with a bit of the first drawing's content changed."""
    background, evaluation = zips()
    at = background.index(members()[FIRST]) + 60
    return [background[:at] + bytes([background[at] ^ 1]) + background[at + 1 :], evaluation]


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        (lambda: [b"<html>moved</html>", zips()[1]], "File is not a zip file"),
        (lambda: [zips()[0], zips()[1][:-100]], "File is not a zip file"),
        (flipped, f"Bad CRC-32 for file '{FIRST}'"),
        (lambda: zips(**{FIRST: b"no picture"}), "cannot identify image file"),
        (lambda: zips(**{FIRST: members()[FIRST][:-40]}), "truncated|broken"),
        (lambda: zips(**{FIRST: b""}), r"cannot reshape array of size \d+ into shape"),
        (lambda: [zipped({}), zipped({})], "at least one array"),
    ],
    ids=["no zip", "truncated zip", "bit flipped", "no picture", "half a picture", "a drawing less", "empty"],
)
def test_published_archives_of_another_form_are_said(web, contents, said):
    web.put("_OMNIGLOT", contents(), "good")
    arrived = "images_background.zip, images_evaluation.zip arrived as published but cannot be read"
    with pytest.raises(DownloadError, match=rf"{arrived} \(.*({said}).*\)\. Please report it"):
        omniglot(train=3)
    assert left_in(web.cache) == []


def test_the_published_archives_are_described_whole():
    for file in data_classes._OMNIGLOT.files:
        assert re.fullmatch("[0-9a-f]{32}", file.md5)
        assert file.size > 6_000_000
    assert all(re.fullmatch(r"https://\S+/", mirror) for mirror in data_classes._OMNIGLOT.mirrors)
    assert [file.name for file in data_classes._OMNIGLOT.files] == ["images_background.zip", "images_evaluation.zip"]


# --- Omniglot: lookup -----------------------------------------------------------------------------------------------


def test_omniglot_is_taken_from_the_directory_then_the_cache_then_the_server(web, given):
    web.put("_OMNIGLOT", zips(), "good")
    web.cache.mkdir()
    here, kept = classes(4, 20, 28, 28, seed=1), classes(4, 20, 28, 28, seed=2)
    np.savez(given / "omniglot.npz", images=here, names=np.array(["a", "b", "c", "d"]))
    np.savez_compressed(web.cache / "omniglot.npz", images=kept)
    for images in (here, kept):
        found = omniglot(train=1, rotations=False)
        assert np.array_equal(np.concatenate(found), images)
        ((given if images is here else web.cache) / "omniglot.npz").unlink()
    assert web.log == []
    assert np.array_equal(np.concatenate(omniglot(train=1, rotations=False)), expected())
    assert len(web.log) == 2
    assert left_in(given) == []


WHOLE = classes(4, 20, 28, 28)
WANTED = r"and must be uint8 \(classes, pictures, 28, 28\) with values 0..255"


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"images": WHOLE / 255}, rf"images is float64 \(4, 20, 28, 28\), {WANTED}"),
        ({"images": WHOLE.astype(np.int64)}, rf"images is int64 \(4, 20, 28, 28\), {WANTED}"),
        ({"images": WHOLE > 99}, rf"images is bool \(4, 20, 28, 28\), {WANTED}"),
        ({"images": WHOLE[..., None]}, rf"images is uint8 \(4, 20, 28, 28, 1\), {WANTED}"),
        ({"images": WHOLE.reshape(80, 28, 28)}, rf"images is uint8 \(80, 28, 28\), {WANTED}"),
        ({"images": WHOLE[..., 1:]}, rf"images is uint8 \(4, 20, 28, 27\), {WANTED}"),
        ({"images": WHOLE[:0]}, rf"images is uint8 \(0, 20, 28, 28\), {WANTED}"),
        ({"images": WHOLE[:, :0]}, rf"images is uint8 \(4, 0, 28, 28\), {WANTED}"),
        ({"images": np.uint8(3)}, rf"images is uint8 \(\), {WANTED}"),
        ({"images": np.array([{}], dtype=object)}, "is damaged or not an NPZ file .*allow_pickle"),
        ({"pictures": WHOLE}, "lacks the arrays images"),
    ],
)
def test_other_arrays_than_omniglots_are_said_and_kept(web, given, monkeypatch, arrays, said):
    web.put("_OMNIGLOT", zips(), "good")
    web.cache.mkdir()
    for place, remedy in (
        (given, "Replace it, or remove it to use the cache or the download."),
        (web.cache, "Remove it, and it will be downloaded again."),
    ):
        monkeypatch.setenv("BILEVAX_DATA", str(given) if place is given else "")
        path = place / "omniglot.npz"
        np.savez(path, **arrays)
        content = path.read_bytes()
        with pytest.raises(InputError, match=f"{re.escape(str(path))}.*{said}.*{re.escape(remedy)}$"):
            omniglot(train=2)
        assert path.read_bytes() == content
    assert web.log == []


# --- Omniglot: the split --------------------------------------------------------------------------------------------


def test_turned_classes_follow_those_they_are_made_of(given):
    images = classes(5, 20, 28, 28)
    np.savez(given / "omniglot.npz", images=images)
    found = omniglot(train=3)
    assert [part.shape[0] for part in found] == [12, 0, 8]
    for part, plain in ((found.train, images[:3]), (found.test, images[3:])):
        n = len(plain)
        assert part.dtype == np.uint8
        for turns in range(4):
            for i in range(n):
                for drawing, before in zip(part[turns * n + i], plain[i], strict=True):
                    assert np.array_equal(drawing, np.rot90(before, turns))


def test_by_default_1200_characters_are_learnt_from(given):
    np.savez(given / "omniglot.npz", images=np.zeros((1623, 1, 28, 28), np.uint8))
    assert [part.shape for part in omniglot()] == [(4800, 1, 28, 28), (0, 1, 28, 28), (1692, 1, 28, 28)]
    assert [len(part) for part in omniglot(rotations=False)] == [1200, 0, 423]


@pytest.mark.parametrize(
    ("train", "said"),
    [
        (5, "omniglot: train is 5, and there are 5 characters. Leave some for tests."),
        (6, "omniglot: train is 6, and there are 5 characters. Leave some for tests."),
        (1200, "omniglot: train is 1200, and there are 5 characters."),
        (0, "omniglot: train is 0, and must be a positive integer."),
        (-1, "omniglot: train is -1, and must be a positive integer."),
        (2.0, "omniglot: train is 2.0, and must be a positive integer."),
        (True, "omniglot: train is True, and must be a positive integer."),
    ],
)
def test_a_split_without_two_parts_is_refused(given, train, said):
    np.savez(given / "omniglot.npz", images=classes(5, 20, 28, 28))
    with pytest.raises(InputError, match=re.escape(said)):
        omniglot(train=train)


def test_a_count_that_can_never_be_is_refused_before_the_download(web):
    web.put("_OMNIGLOT", zips(), "good")
    with pytest.raises(InputError, match="train is 0"):
        omniglot(train=0)
    assert web.log == []


def test_pictures_in_colour_are_turned_channel_by_channel():
    images = classes(2, 3, 8, 8, 3)
    before = images.copy()
    turned = rotated(images)
    assert turned.shape == (8, 3, 8, 8, 3)
    for turns in range(4):
        for channel in range(3):
            assert np.array_equal(turned[2 * turns + 1, 2, ..., channel], np.rot90(images[1, 2, ..., channel], turns))
    assert np.array_equal(images, before)


def test_omniglot_as_published():
    path = os.path.join(os.environ.get("BILEVAX_DATA", ""), "omniglot.npz")
    if not os.environ.get("BILEVAX_DATA") or not os.path.isfile(path):
        pytest.skip("BILEVAX_DATA has no omniglot.npz")
    found = omniglot(rotations=False)
    assert [part.shape for part in found] == [(1200, 20, 28, 28), (0, 20, 28, 28), (423, 20, 28, 28)]
    assert all(0.03 < part.mean() / 255 < 0.15 for part in (found.train, found.test))  # strokes are thin, and white


# --- mini-ImageNet --------------------------------------------------------------------------------------------------

PARTS = {
    f"mini_imagenet_{part}": classes(n, 2, 84, 84, 3, seed=n) for part, n in {"train": 4, "val": 2, "test": 3}.items()
}


def test_mini_imagenet_is_read_from_three_files(given, tmp_path):
    cache = tmp_path / "bilevax"
    cache.mkdir()
    for name, images in PARTS.items():  # one of them in the cache
        np.savez((cache if name.endswith("val") else given) / f"{name}.npz", images=images)
    found = mini_imagenet()
    assert isinstance(found, ClassSplit)
    assert all(part.dtype == np.uint8 for part in found)
    for part, images in zip((found.train, found.val, found.test), PARTS.values(), strict=True):
        assert np.array_equal(part, images)


@pytest.mark.parametrize("name", PARTS)
def test_a_missing_part_is_said_with_the_places_looked_at(given, tmp_path, name):
    for other in PARTS.keys() - {name}:
        np.savez(given / f"{other}.npz", images=PARTS[other])
    with pytest.raises(DownloadError) as caught:
        mini_imagenet()
    assert str(caught.value) == (
        f"{name} is not in {given / name}.npz (BILEVAX_DATA) nor in {tmp_path / 'bilevax' / name}.npz (the cache), "
        f"and there is no public address to download it from. Put {name}.npz (arrays images, all uint8) in a directory "
        "and set BILEVAX_DATA to it."
    )
    assert left_in(tmp_path / "bilevax") == []


@pytest.mark.parametrize("name", PARTS)
def test_a_part_of_another_shape_is_said_and_no_download_is_promised(given, tmp_path, name):
    cache = tmp_path / "bilevax"
    cache.mkdir()
    for other in PARTS:
        np.savez(given / f"{other}.npz", images=PARTS[other])
    (given / f"{name}.npz").unlink()
    for place, remedy in ((cache, "Replace it."), (given, "Replace it, or remove it to use the cache.")):
        path = place / f"{name}.npz"
        np.savez(path, images=PARTS[name][..., 0])
        shape = str(PARTS[name].shape[:-1])
        with pytest.raises(InputError) as caught:
            mini_imagenet()
        assert str(caught.value) == (
            f"{path}: images is uint8 {shape}, and must be uint8 (classes, pictures, 84, 84, 3) with values 0..255. "
            f"{remedy}"
        )


def test_a_part_of_other_numbers_is_said(given):
    np.savez(given / "mini_imagenet_train.npz", images=PARTS["mini_imagenet_train"].astype(np.float32))
    with pytest.raises(InputError, match=r"mini_imagenet_train.npz: images is float32 \(4, 2, 84, 84, 3\), and must"):
        mini_imagenet()


# --- a folder of folders --------------------------------------------------------------------------------------------


def put(root, **content):
    """Files FOLDER/NAME: pictures of arrays, which are PNG unless the name says otherwise, or bytes."""
    for folder, files in content.items():
        (root / folder).mkdir(exist_ok=True)
        for name, file in files.items():
            if isinstance(file, bytes):
                (root / folder / name).write_bytes(file)
            else:
                Image.fromarray(file).save(root / folder / name)


GREY = classes(4, 5, 6, seed=3)
COLOUR = classes(4, 5, 6, 3, seed=4)


def test_grey_pictures_are_read_in_the_order_of_names(tmp_path):
    put(
        tmp_path,
        b={"2.png": GREY[1], "10.png": GREY[0]},  # the order is that of text
        a={"y.png": GREY[3], "x.bmp": GREY[2]},
    )
    (tmp_path / "notes.txt").write_text("beside the classes")
    found = class_folders(tmp_path)
    assert found.names == ["a", "b"]
    assert found.unread == []
    assert found.images.dtype == np.uint8
    assert np.array_equal(found.images, np.stack([GREY[2:], GREY[:2]]))


def test_one_picture_in_colour_makes_all_of_them_colour(tmp_path):
    put(tmp_path, a={"1.png": GREY[0], "2.png": GREY[1]}, b={"1.png": GREY[2], "2.png": COLOUR[0]})
    found = class_folders(tmp_path)
    assert found.images.shape == (2, 2, 5, 6, 3)
    assert found.images.dtype == np.uint8
    assert np.array_equal(found.images[1, 1], COLOUR[0])
    for channel in range(3):
        assert np.array_equal(found.images[0, ..., channel], GREY[:2])


def test_palettes_and_transparency_are_shown_as_they_look(tmp_path):
    four = np.array([[0, 1], [2, 3]], np.uint8).repeat(2, axis=0)
    palette = Image.fromarray(four)
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    put(tmp_path, a={"2.png": np.full((4, 2, 4), (1, 2, 3, 255), np.uint8)})
    palette.save(tmp_path / "a" / "1.png")
    images = class_folders(tmp_path).images
    assert np.array_equal(images[0, 0], 10 * (1 + 3 * four[..., None] + np.arange(3)))
    assert np.array_equal(images[0, 1], np.broadcast_to(np.uint8([1, 2, 3]), (4, 2, 3)))


@pytest.mark.parametrize(
    ("array", "shown"),
    [
        (np.array([[True, False]]), [[255, 0]]),
        (np.array([[[7, 255], [9, 255]]], np.uint8), [[7, 9]]),
        (np.array([[0, 255, 256, 32768, 65535]], np.uint16), [[0, 0, 1, 128, 255]]),
    ],
    ids=["a bit", "alpha", "16 bits"],
)
def test_every_kind_of_grey_is_grey(tmp_path, array, shown):
    put(tmp_path, a={"1.png": array}, b={"1.png": np.array(shown, np.uint8)})
    assert class_folders(tmp_path).images.tolist() == [[shown], [shown]]


def test_16_bits_of_a_tiff_keep_their_shades(tmp_path):
    array = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    put(tmp_path, a={"1.tiff": array, "2.tiff": array.astype(np.int32)})
    (tmp_path / "a" / "3.pgm").write_bytes(b"P5 16 16 65535\n" + array.astype(">u2").tobytes())
    found = class_folders(tmp_path)
    assert found.images.shape == (1, 3, 16, 16)
    assert all(np.array_equal(image, np.arange(256).reshape(16, 16)) for image in found.images[0])
    put(tmp_path, a={"1.tiff": array.astype(np.int32) * 2 - 40_000})  # what is not in 16 bits is cut off
    assert class_folders(tmp_path).images[0, 0, [0, -1], [0, -1]].tolist() == [0, 255]


def test_hidden_folders_and_folders_in_classes_are_left_out(tmp_path):
    put(tmp_path, a={"1.png": GREY[0]}, **{".thumbnails": {"1.png": classes(9, 9)}})
    (tmp_path / ".empty").mkdir()
    (tmp_path / "a" / "more").mkdir()
    found = class_folders(tmp_path, strict=True)
    assert found.names == ["a"]
    assert np.array_equal(found.images, GREY[None, :1])


def test_several_sizes_are_refused_with_each_named_and_counted(tmp_path):
    put(
        tmp_path,
        a={"1.png": classes(9, 8), "2.png": classes(5, 6), "3.png": classes(6, 5)},
        b={"1.png": classes(6, 5), "2.png": classes(5, 6), "3.png": classes(5, 6)},
    )
    said = f"The pictures in {tmp_path} are of several sizes: 6 x 5 (3), 5 x 6 (2), 8 x 9 (1). Pass a side to resize"
    with pytest.raises(InputError, match=re.escape(said)):
        class_folders(tmp_path)


def test_a_side_brings_all_to_one_size(tmp_path):
    small, large = classes(5, 6, seed=1), classes(40, 30, seed=2)
    put(tmp_path, a={"1.png": small}, b={"1.png": large})
    found = class_folders(tmp_path, side=8)
    assert found.images.shape == (2, 1, 8, 8)
    for image, before in zip(found.images[:, 0], (small, large), strict=True):
        assert np.array_equal(image, np.asarray(Image.fromarray(before).resize((8, 8), Image.LANCZOS)))


@pytest.mark.parametrize("side", [0, -3, 2.5, True])
def test_a_side_that_is_no_length_is_refused(tmp_path, side):
    put(tmp_path, a={"1.png": GREY[0]})
    with pytest.raises(InputError, match=f"class_folders: side is {side}, and must be a positive integer"):
        class_folders(tmp_path, side=side)


def unreadable():
    """Files that Pillow gives up on, each with an error of another type."""
    whole = png(classes(200, 200, 3))
    second = whole.index(b"IDAT", whole.index(b"IDAT") + 4)  # of the blocks of pixels
    size = struct.pack(">2I5B", 50_000, 50_000, 8, 2, 0, 0, 0)
    head = struct.pack(">I", len(size)) + b"IHDR" + size + struct.pack(">I", zlib.crc32(b"IHDR" + size))
    return {
        "text.png": b"no picture",
        "empty.png": b"",
        "truncated.png": whole[: len(whole) // 2],
        "broken.png": whole[:second] + b"\0" + whole[second + 1 :],
        "number.ppm": b"P6 Q0 4 255\n" + bytes(48),
        "bomb.png": whole[:8] + head + whole[33:],
    }


@pytest.mark.parametrize("name", unreadable())
def test_a_file_that_cannot_be_read_is_left_out_and_named(tmp_path, name):
    """And it has no say in whether there is colour."""
    put(tmp_path, a={"1.png": GREY[0], name: unreadable()[name], "z.png": GREY[1]}, b={"1.png": GREY[2]})
    found = class_folders(tmp_path)
    assert found.unread == [f"a/{name}"]
    assert np.array_equal(found.images, GREY[[0, 2]][:, None])
    said = f"{re.escape(str(tmp_path / 'a' / name))} cannot be read as a picture \\(.+\\). Remove it, or leave out"
    with pytest.raises(InputError, match=said):
        class_folders(tmp_path, strict=True)


def test_every_unreadable_file_is_named_and_the_others_are_kept(tmp_path):
    put(
        tmp_path,
        a={"0.png": b"?", "1.png": GREY[0], "2.png": GREY[1]},
        b={"0.png": GREY[2], "1.png": b"", "2.png": GREY[3], "9": b"?"},
    )
    found = class_folders(tmp_path)
    assert found.unread == ["a/0.png", "b/1.png", "b/9"]
    assert np.array_equal(found.images, GREY.reshape(2, 2, 5, 6))


def test_nothing_is_refused_for_being_strict_where_all_can_be_read(tmp_path):
    put(tmp_path, a={"1.png": GREY[0]})
    assert np.array_equal(class_folders(tmp_path, strict=True).images, GREY[None, :1])


@pytest.mark.parametrize("files", [{}, {"1.png": b"no picture", "2.txt": b"notes"}], ids=["empty", "unreadable"])
def test_a_class_without_a_picture_is_refused(tmp_path, files):
    put(tmp_path, a={"1.png": GREY[0]}, b=files)
    said = f"{tmp_path / 'b'} has no picture that can be read. Add some, or remove the folder."
    with pytest.raises(InputError, match=re.escape(said)):
        class_folders(tmp_path)


def test_a_folder_without_classes_is_refused(tmp_path):
    Image.fromarray(GREY[0]).save(tmp_path / "1.png")
    (tmp_path / ".git").mkdir()
    said = f"{tmp_path} has no subfolders. Make one for each class, with its pictures in it."
    with pytest.raises(InputError, match=re.escape(said)):
        class_folders(tmp_path)


def test_what_is_no_folder_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(png(GREY[0]))
    for name in ("nowhere", "file"):
        with pytest.raises(InputError, match=re.escape(f"{tmp_path / name} is not a folder. Pass a folder that has")):
            class_folders(tmp_path / name)


def test_each_class_gives_as_many_pictures_as_the_smallest_has(tmp_path):
    put(
        tmp_path,
        a={f"{i}.png": GREY[i] for i in range(4)},
        b={"0.png": GREY[3], "1.png": b"?", "2.png": GREY[1]},  # two can be read
        c={f"{i}.png": GREY[i] for i in (0, 2, 3)},
    )
    found = class_folders(tmp_path)
    assert found.names == ["a", "b", "c"]
    assert np.array_equal(found.images, GREY[[[0, 1], [3, 1], [0, 2]]])


# --- pictures as people have them -----------------------------------------------------------------------------------


def saved(mode, array, suffix="png", **settings):
    out = io.BytesIO()
    Image.fromarray(array).convert(mode).save(
        out, {"png": "PNG", "jpg": "JPEG", "gif": "GIF", "tif": "TIFF"}[suffix], **settings
    )
    return out.getvalue()


def with_alpha(shade, alpha):
    """A picture of one shade with a drawing in the alpha channel."""
    return np.dstack([np.full((*alpha.shape, 3), shade, np.uint8), alpha])


STROKE = np.array([[0, 255, 0, 0], [0, 255, 128, 0]], np.uint8)


@pytest.mark.parametrize(("shade", "shown"), [(0, 255 - STROKE), (255, STROKE)], ids=["black ink", "white ink"])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_a_drawing_in_the_alpha_channel_is_a_drawing(tmp_path, mode, shade, shown):
    put(tmp_path, a={"1.png": saved(mode, with_alpha(shade, STROKE))})
    found = class_folders(tmp_path).images
    image = found[0, 0] if mode == "LA" else found[0, 0, ..., 0]
    assert np.array_equal(image, shown)


def test_an_alpha_channel_that_hides_all_or_nothing_is_left_out(tmp_path):
    for alpha in (0, 255):
        put(tmp_path, a={"1.png": np.dstack([COLOUR[0], np.full((5, 6), alpha, np.uint8)])})
        assert np.array_equal(class_folders(tmp_path).images[0, 0], COLOUR[0])


def test_a_transparent_colour_of_a_palette_or_of_grey_is_the_ground(tmp_path):
    grey = np.array([[7, 7, 90], [7, 90, 7]], np.uint8)
    put(tmp_path, a={"1.png": saved("L", grey, transparency=7)}, b={"1.gif": saved("P", grey, "gif", transparency=7)})
    found = class_folders(tmp_path, side=None).images
    assert np.array_equal(found[0, 0, ..., 0], np.where(grey == 7, 255, 90))
    assert found[1, 0].min() < 128


def test_cmyk_floats_frames_and_turned_photographs(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    tall = np.zeros((16, 8, 3), np.uint8)
    tall[:8] = 255
    ramp = np.linspace(0, 1, 48, dtype=np.float32).reshape(6, 8)
    frames = [Image.fromarray(np.full((6, 8), value, np.uint8)) for value in (200, 10)]
    put(tmp_path, a={}, b={}, c={}, d={})
    (tmp_path / "a" / "1.jpg").write_bytes(saved("RGB", tall, "jpg", exif=exif))
    (tmp_path / "b" / "1.tif").write_bytes(saved("CMYK", np.full((6, 8, 3), (255, 0, 0), np.uint8), "tif"))
    Image.fromarray(ramp).save(tmp_path / "c" / "1.tif")
    Image.fromarray(ramp * 255).save(tmp_path / "c" / "2.tif")
    Image.fromarray(ramp - 3).save(tmp_path / "c" / "3.tif")
    frames[0].save(tmp_path / "d" / "1.gif", save_all=True, append_images=frames[1:])
    turned = folders._read_picture(tmp_path / "a" / "1.jpg")[0]
    assert turned.size == (16, 8)
    assert np.asarray(turned)[4, 2].max() < 50  # what was below is on the left
    assert np.asarray(turned)[4, 13].min() > 200
    assert np.abs(np.asarray(folders._read_picture(tmp_path / "b" / "1.tif")[0]).astype(int) - [255, 0, 0]).max() < 3
    for name in ("1", "2"):
        shown, grey = folders._read_picture(tmp_path / "c" / f"{name}.tif")
        assert grey
        assert np.array_equal(np.asarray(shown)[..., 0], np.rint(ramp * 255))
    with pytest.raises(ValueError, match=r"its floats span -3..-2, which is neither"):
        folders._read_picture(tmp_path / "c" / "3.tif")
    assert np.asarray(folders._read_picture(tmp_path / "d" / "1.gif")[0])[0, 0, 0] == 200


def test_what_is_no_regular_file_is_named_and_never_opened(tmp_path):
    put(tmp_path, a={"1.png": GREY[0]})
    os.mkfifo(tmp_path / "a" / "pipe.png")
    (tmp_path / "a" / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "a" / "loop.png").symlink_to("loop.png")
    (tmp_path / "a" / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "a" / "round").symlink_to(tmp_path)
    (tmp_path / "a" / "näme\nof two lines.png").write_bytes(png(GREY[1]))
    (tmp_path / os.fsdecode(b"a/\xff.png")).write_bytes(png(GREY[2]))
    found = class_folders(tmp_path)
    assert found.unread == ["a/gone.png", "a/loop.png", "a/pipe.png", "a/zero.png"]
    assert found.counts == [3]
    with pytest.raises(InputError, match=r"gone.png cannot be read as a picture \(it does not exist\)"):
        class_folders(tmp_path, strict=True)


def test_a_folder_that_cannot_be_listed_is_refused(tmp_path, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(tmp_path), "iterdir", refuse)
    with pytest.raises(InputError, match=r"cannot be listed \(Permission denied\)\. Check its permissions"):
        class_folders(tmp_path)


def test_pictures_beyond_the_memory_are_refused(tmp_path, monkeypatch):
    put(tmp_path, a={f"{i}.png": GREY[0] for i in range(8)})
    monkeypatch.setattr(folders, "memory", lambda: 1000)
    with pytest.raises(InputError, match=r"do not fit into memory \(6 of them .*--side"):
        class_folders(tmp_path)
