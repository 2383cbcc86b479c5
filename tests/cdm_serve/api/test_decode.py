"""Files as they come from strangers."""

import io
import random
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from cdm_serve.api.decode import prepare
from cdm_serve.api.errors import ApiError

SIZES = ("64x64", "96x64")
# Four colours, one a corner, so that a turn or a mirror shows.
CORNERS = {(0, 0): (255, 0, 0), (1, 0): (0, 255, 0), (0, 1): (0, 0, 255), (1, 1): (255, 255, 0)}


def square(side=64, mode="RGB"):
    image = Image.new("RGB", (side, side))
    for (x, y), colour in CORNERS.items():
        image.paste(
            colour, (x * side // 2, y * side // 2, (x + 1) * side // 2, (y + 1) * side // 2)
        )
    return image.convert(mode)


def saved(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data, mask=None, sizes=SIZES):
    return prepare(data, mask, sizes).tensors["picture"]


def corners(found):
    height, width, _ = found.shape
    return {
        (x, y): tuple(found[(4 * y + 1) * height // 6, (4 * x + 1) * width // 6].tolist())
        for x, y in CORNERS
    }


def close(found, expected, most=12):
    return all(np.abs(np.subtract(found[each], expected[each])).max() <= most for each in CORNERS)


def refused(data, mask=None):
    with pytest.raises(ApiError) as error:
        prepare(data, mask, SIZES)
    assert error.value.status == 400 and "\n" not in str(error.value)
    assert error.value.param in ("image", "mask")
    return str(error.value)


def test_what_has_the_size_comes_as_it_is():
    exact = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    found = prepare(saved(Image.fromarray(exact)), None, SIZES)
    assert found.size == "64x64" and set(found.tensors) == {"picture"}
    assert found.tensors["picture"].dtype == np.uint8
    assert np.array_equal(found.tensors["picture"], exact)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("PNG", "P"), ("PNG", "RGBA"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("WEBP", "RGB")],
)
def test_every_kind_of_file_becomes_rgb(kind, mode):
    assert close(corners(pixels(saved(square(mode=mode), kind))), CORNERS)


@pytest.mark.parametrize("mode", ["L", "LA", "1", "I;16"])
def test_grey_of_any_depth_keeps_its_brightness(mode):
    grey = np.tile(np.array([0, 85, 170, 255], np.uint8).repeat(16), (64, 1))
    image = Image.fromarray(grey)
    image = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    expected = (grey > 127) * 255 if mode == "1" else grey
    columns = [8, 56] if mode == "1" else [8, 24, 40, 56]  # one bit is dithered between
    assert np.array_equal(pixels(saved(image))[32, columns, 1], expected[32, columns])


def png(side, depth, rows):
    """By hand: Pillow writes none of these."""
    header = struct.pack(">2I5B", side, side, depth, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def test_sixteen_bits_a_colour():
    row = b"\0" + 64 * struct.pack(">3H", 65535, 32896, 0)
    assert pixels(png(64, 16, 64 * row))[9, 9].tolist() == [255, 128, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_picture_is_turned_as_its_exif_says(kind, orientation):
    how = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    stored = square()
    for each in how.get(orientation, []):
        stored = stored.transpose(each)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {} if kind == "PNG" else {"quality": 95}
    assert close(corners(pixels(saved(stored, kind, exif=exif, **options))), CORNERS, 30)


def display_p3():
    """sRGB's profile with the colorants of Display P3, which has the same curve."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for number in range(int.from_bytes(profile[128:132])):
        tag, place = struct.unpack_from(">4sI", profile, 132 + 12 * number)
        if tag in P3:
            struct.pack_into(">3i", profile, place + 8, *(round(65536 * x) for x in P3[tag]))
    return bytes(profile)


P3 = {
    b"rXYZ": (0.51512, 0.24120, -0.00105),
    b"gXYZ": (0.29198, 0.69225, 0.04189),
    b"bXYZ": (0.15710, 0.06657, 0.78407),
}


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_other_colours_become_srgb(mode):
    """By the two spaces' definitions: linear light, through the matrix between them, and back."""
    colour = np.array([200, 100, 50])
    linear = ((colour / 255 + 0.055) / 1.055) ** 2.4
    between = [[1.22494, -0.22494, 0], [-0.04206, 1.04206, 0], [-0.01964, -0.07864, 1.09828]]
    expected = 255 * (1.055 * (between @ linear) ** (1 / 2.4) - 0.055)
    image = Image.new(mode, (64, 64), (*colour, 255)[: len(mode)])
    data = saved(image, icc_profile=display_p3())
    assert np.abs(pixels(data) - expected).max() < 1.5
    assert np.array_equal(pixels(saved(image))[0, 0], colour)
    if mode == "RGBA":  # whose transparency stays what it is
        image.paste((0, 0, 0, 0), (0, 0, 32, 64))
        made = prepare(saved(image, icc_profile=display_p3()), None, SIZES)
        assert made.tensors["mask"][:, :32].all() and not made.tensors["mask"][:, 32:].any()


def test_a_transparent_colour_is_one_with_a_profile_too():
    image = Image.new("RGB", (64, 64), (200, 100, 50))
    image.paste((255, 0, 255), (0, 0, 32, 64))
    file = saved(image, transparency=(255, 0, 255), icc_profile=display_p3())
    made = prepare(file, None, SIZES)
    assert made.tensors["mask"][:, :32].all() and not made.tensors["mask"][:, 32:].any()


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "L"])
def test_a_profile_that_does_not_fit_changes_nothing(mode):
    """Broken ones, and for grey and CMYK one of RGB."""
    image = square(mode=mode)
    kind = "PNG" if mode != "CMYK" else "JPEG"
    plain = pixels(saved(image, kind))
    good = display_p3()
    for profile in (b"none", good[:200], bytes(len(good)), *([good] if mode != "RGB" else [])):
        assert np.array_equal(pixels(saved(image, kind, icc_profile=profile)), plain)


def test_damaged_profiles_are_no_danger():
    draw, image = random.Random(3), square()
    for _ in range(200):
        profile = bytearray(display_p3())
        for _ in range(draw.choice([1, 4, 30])):
            profile[draw.randrange(len(profile))] = draw.randrange(256)
        assert pixels(saved(image, icc_profile=bytes(profile))).shape == (64, 64, 3)


def test_others_are_covered_and_cropped_in_the_middle():
    tall = Image.new("RGB", (40, 200), "red")
    tall.paste("blue", (0, 80, 40, 120))
    found = pixels(saved(tall))
    assert found.shape == (64, 64, 3) and np.abs(found[32, 32] - [0, 0, 255]).max() == 0
    wide = prepare(saved(Image.new("RGB", (300, 200))), None, SIZES)
    assert (wide.size, wide.tensors["picture"].shape) == ("96x64", (64, 96, 3))
    assert prepare(saved(Image.new("RGB", (300, 200))), None, ("64x64",)).size == "64x64"
    exact = np.random.default_rng(0).integers(0, 256, (72, 40, 3), np.uint8)
    own = prepare(saved(Image.fromarray(exact)), None, SIZES, "40x72".__eq__)
    assert own.size == "40x72" and np.array_equal(own.tensors["picture"], exact)


def test_masks_paint_where_they_are_transparent_or_else_white():
    expected = np.zeros((64, 64), bool)
    expected[:, :32] = True
    alpha = Image.new("RGBA", (64, 64), (255, 255, 255, 255))
    alpha.paste((255, 255, 255, 0), (0, 0, 32, 64))
    grey = Image.fromarray(np.where(expected, 255, 0).astype(np.uint8))
    for mask in (alpha, grey, grey.convert("RGB"), grey.convert("1")):
        tensor = prepare(saved(square()), saved(mask), SIZES).tensors["mask"]
        assert tensor.dtype == bool and np.array_equal(tensor, expected)
    # The picture's own transparency is a mask too, unless there is another; below it is white.
    own = prepare(saved(alpha), None, SIZES)
    assert np.array_equal(own.tensors["mask"], expected)
    assert (own.tensors["picture"] == 255).all()
    assert not np.array_equal(
        prepare(saved(alpha), saved(grey.rotate(90)), SIZES).tensors["mask"], expected
    )
    alpha.putalpha(255)
    alpha.putpixel((0, 0), (0, 0, 0, 0))
    corner = prepare(saved(alpha.resize((640, 640), Image.Resampling.NEAREST)), None, ("64x64",))
    assert corner.tensors["mask"].sum() == 1
    alpha = alpha.resize((640, 640))
    alpha.putalpha(255)
    alpha.putpixel((0, 0), (0, 0, 0, 0))
    assert set(prepare(saved(alpha), None, SIZES).tensors) == {"picture"}  # nothing is left of it
    large = prepare(saved(square(200)), saved(grey.resize((200, 200))), SIZES).tensors["mask"]
    assert np.array_equal(large, expected)


def test_masks_that_do_not_fit():
    assert "mask: is 32x32, and the image 64x64" in refused(saved(square()), saved(square(32)))
    black = saved(Image.new("L", (64, 64)))
    assert "nothing is to be painted" in refused(saved(square()), black)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_what_moves_is_refused(kind):
    more = [square().rotate(90 * k) for k in (1, 2)]
    data = saved(square(), kind, save_all=True, append_images=more)
    assert "image: has 3 frames" in refused(data)


def test_a_phones_further_pictures_are_passed_over():
    data = saved(square(), "MPO", save_all=True, append_images=[square().rotate(90)])
    assert close(corners(pixels(data)), CORNERS)


def test_bombs_are_not_decoded():
    """A gigapixel in a few kilobytes, and text that inflates to a gigabyte."""
    text = PngImagePlugin.PngInfo()
    text.add_text("bomb", "0" * 200_000_000, zip=True)
    bomb = saved(square(), pnginfo=text)
    assert len(bomb) < 300_000
    tracemalloc.start()
    for side in (5_001, 10_000, 40_000):
        assert "more than 25 million pixels" in refused(png(side, 8, b""))
    assert "damaged" in refused(bomb)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("data", [b"", b"GIF89a" + bytes(40), b"<svg></svg>", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_picture(data):
    assert "PNG, JPEG or WebP" in refused(data) or "damaged" in refused(data)


def test_other_formats_are_not_even_tried():
    for kind in ("GIF", "BMP", "TIFF", "PPM", "ICO", "EPS"):
        assert "is no PNG, JPEG or WebP file" in refused(saved(square(), kind))


@pytest.mark.parametrize("count", [300, pytest.param(2000, marks=pytest.mark.slow)])
def test_damaged_files_are_refused_or_shown_and_nothing_else(count):
    draw = random.Random(3)
    good = [
        *(saved(square(mode=mode)) for mode in ("RGB", "P", "RGBA", "L")),
        saved(square(), "JPEG"),
        saved(square(mode="CMYK"), "JPEG"),
        saved(square(), "WEBP", lossless=True),
        saved(square(), "WEBP"),
    ]
    shown = 0
    for _ in range(count):
        data = bytearray(draw.choice(good))
        for _ in range(draw.choice([0, 1, 8, 40])):
            data[draw.randrange(len(data))] = draw.randrange(256)
        if draw.random() < 0.3:
            del data[draw.randrange(len(data)) :]
        try:
            shown += pixels(bytes(data)).shape in ((64, 64, 3), (64, 96, 3))
        except ApiError as error:
            assert error.status == 400
    assert 0 < shown < count
