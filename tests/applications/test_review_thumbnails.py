import io

import numpy as np
import pytest
from PIL import Image

from bilevax import InputError
from bilevax.applications.denoising.review import thumbnail


def opened(content):
    return Image.open(io.BytesIO(content))


def saved(image, kind, **more):
    out = io.BytesIO()
    image.save(out, kind, **more)
    return out.getvalue()


def test_small_pictures_are_kept_exactly():
    pixels = np.random.default_rng(0).integers(0, 256, (28, 20, 3), np.uint8)
    found = opened(thumbnail(pixels))
    assert found.format == "PNG"
    assert np.array_equal(np.asarray(found), pixels)
    grey = opened(thumbnail(pixels[..., 0]))
    assert np.array_equal(np.asarray(grey)[..., 1], pixels[..., 0])


def test_large_pictures_become_small_with_their_shape(tmp_path):
    path = tmp_path / "large.png"
    Image.new("RGB", (600, 300), "red").save(path)
    content = thumbnail(path)
    assert (opened(content).format, opened(content).size) == ("JPEG", (128, 64))
    assert len(content) < 5000
    assert opened(thumbnail(path, side=64)).size == (64, 32)


def test_a_picture_is_turned_and_laid_on_a_ground():
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    assert opened(thumbnail(saved(Image.new("RGB", (40, 20)), "JPEG", exif=exif))).size == (20, 40)
    clear = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    clear.putpixel((3, 3), (10, 10, 10, 255))
    assert np.asarray(opened(thumbnail(saved(clear, "PNG"))))[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("picture", [b"no picture", np.zeros((2, 2, 7), np.uint8)])
def test_what_is_no_picture_is_refused(picture):
    with pytest.raises(InputError, match=r"The picture of .* cannot be read"):
        thumbnail(picture)
