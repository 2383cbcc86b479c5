"""Uploaded files to pixels of a served size; nothing in them is believed.

Pillow is asked for three formats alone, and for pixels only when their number is known to be small.
"""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from cdm_serve.api.errors import ApiError

FORMATS = ("PNG", "JPEG", "WEBP")
# About what a good phone takes; up to 250 MB while it is decoded.
MOST_PIXELS = 25_000_000
# What is lighter is to be painted, in a mask without transparency.
HALF = 128
SRGB = ImageCms.createProfile("sRGB")


@dataclass(frozen=True)
class Prepared:
    """A picture and a mask as an engine takes them, both of ``size``."""

    size: str
    tensors: dict[str, NDArray[np.generic]]


def prepare(
    image: bytes,
    mask: bytes | None,
    sizes: Sequence[str],
    possible: Callable[[str], bool] = lambda size: False,
) -> Prepared:
    """Decode an upload and its mask, and crop both to that of the sizes that has their shape best.

    Of equal ones the first; but their own size, where that is ``possible``. Where no mask is given,
    what is fully transparent in the picture is to be painted; without transparency too there is no
    mask.

    Raises:
        ApiError: one of them cannot be used; the text is for the client.
    """
    picture, painted = _opened(image, "image"), None
    if mask is not None:
        painted = _painted(_opened(mask, "mask"))
        if painted.size != picture.size:
            found, expected = ("x".join(map(str, each.size)) for each in (painted, picture))
            raise ApiError(
                f"mask: is {found}, and the image {expected}: send one of its size", param="mask"
            )
    elif picture.mode == "RGBA" and picture.getchannel("A").getextrema()[0] == 0:
        painted = _painted(picture)
    size = "x".join(map(str, picture.size))
    if not possible(size):
        size = min(sizes, key=lambda each: _difference(picture.size, each))
    width, height = map(int, size.split("x"))
    fitted = ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)
    if fitted.mode == "RGBA":
        fitted = Image.alpha_composite(Image.new("RGBA", fitted.size, "white"), fitted)
    tensors: dict[str, NDArray[np.generic]] = {"picture": np.asarray(fitted.convert("RGB"))}
    if painted is not None:
        fitted = ImageOps.fit(painted, (width, height), Image.Resampling.BOX)
        painted_pixels = np.asarray(fitted) >= HALF
        if painted_pixels.any():
            tensors["mask"] = painted_pixels
        elif mask is not None:
            raise ApiError(
                "mask: nothing is to be painted; expected pixels with alpha 0, or white ones in a "
                "mask without transparency",
                param="mask",
            )
    return Prepared(size, tensors)


def _opened(data: bytes, param: str) -> Image.Image:
    """As RGB, or RGBA where anything in it may be transparent; turned as its EXIF says."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check(image, param)
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip
                return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
            mode = "RGBA" if image.has_transparency_data else "RGB"
            return _in_srgb(image, mode)
    except ApiError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(param) from None
    except UnidentifiedImageError:
        raise ApiError(
            f"{param}: is no PNG, JPEG or WebP file, or the beginning of it is damaged", param=param
        ) from None
    except Exception:  # every decoder has errors of its own
        raise ApiError(f"{param}: the file is damaged or cut off", param=param) from None


def _in_srgb(image: Image.Image, mode: str) -> Image.Image:
    """Converted to a mode, and to sRGB from the colour profile in the file if that is usable."""
    if profile := image.info.get("icc_profile"):
        try:
            # What is transparent may be said by a colour, which the conversion forgets.
            if mode == "RGBA" or image.mode not in ("RGB", "CMYK", "L"):
                image = image.convert(mode)
            colours = image.convert("RGB") if image.mode == "RGBA" else image
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            made = ImageCms.profileToProfile(colours, source, SRGB, outputMode="RGB")
            if made is not None:
                if image.mode == "RGBA":
                    made.putalpha(image.getchannel("A"))
                image = made
        except (OSError, ImageCms.PyCMSError):
            pass  # a broken one, or one of other colours: as without it
    return image if image.mode == mode else image.convert(mode)


def _check(image: Image.Image, param: str) -> None:
    """Refuse what would take much memory, and what is more than one picture."""
    if image.width * image.height > MOST_PIXELS:
        raise _too_large(param)
    frames = getattr(image, "n_frames", 1)
    if image.format != "MPO" and frames > 1:  # phones hide further pictures behind a JPEG
        raise ApiError(f"{param}: has {frames} frames: send one still picture", param=param)


def _too_large(param: str) -> ApiError:
    return ApiError(
        f"{param}: has more than {MOST_PIXELS // 10**6} million pixels: send a smaller picture",
        param=param,
    )


def _painted(image: Image.Image) -> Image.Image:
    """255 where to paint, else 0: where it is fully transparent, or else where it is light."""
    if image.mode == "RGBA":
        return image.getchannel("A").point(lambda alpha: 255 * (alpha == 0))
    return image.convert("L").point(lambda grey: 255 * (grey >= HALF))


def _difference(sides: tuple[int, int], size: str) -> float:
    """Between two shapes; rounded, so that of equal ones the first is taken."""
    (width, height), (w, h) = sides, map(int, size.split("x"))
    return round(abs(math.log((width * h) / (height * w))), 6)
