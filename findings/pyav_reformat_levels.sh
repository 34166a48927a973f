#!/usr/bin/env bash
# PyAV 18.1.0 (FFmpeg 8.1): video white is not white in rgb48, and the default scaler loses a level of gray.
#
# Seen 2026-11-30 with av 18.1.0, Python 3.11, Linux x86-64, frames of BT.709 in limited range, ranges and matrices named:
# - yuv444p10le white (Y 940, Cb and Cr 512) becomes 65283 in rgb48le, not 65535; so does white of 12 and 16 bits. In rgb24
#   8-bit white becomes 255. What is made of rgb48 and compared with 65535 is 0.4 % too dark.
# - yuv420p gray of 16 to 235 → rgb24 → yuv420p: with the default interpolation (BICUBIC) 87 of 220 levels come back one too
#   low; with ACCURATE_RND, FULL_CHR_H_INT and FULL_CHR_H_INP added all come back as they were.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet av==18.1.0 numpy
"$folder/venv/bin/python" - << 'PYTHON'
import av
import numpy as np
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

LIMITED, FULL = 1, 2
EXACT = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP


def flat(pixels, luma, chroma, dtype):
    frame = av.VideoFrame(64, 48, pixels)
    for plane, value in zip(frame.planes, (luma, chroma, chroma)):
        np.frombuffer(plane, dtype)[:] = value
    return frame


def scaled(frame, pixels, before, after, flags=Interpolation.BICUBIC):
    return VideoReformatter().reformat(
        frame, format=pixels, src_color_range=before, dst_color_range=after, interpolation=flags,
        src_colorspace=Colorspace.ITU709, dst_colorspace=Colorspace.ITU709,
    )


def first(frame, dtype):
    return int(np.frombuffer(frame.planes[0], dtype)[0])


def wrong(flags):
    count = 0
    for luma in range(16, 236):
        rgb = scaled(flat("yuv420p", luma, 128, np.uint8), "rgb24", LIMITED, FULL, flags)
        back = first(scaled(rgb, "yuv420p", FULL, LIMITED, flags), np.uint8)
        assert back in (luma - 1, luma), (luma, back)
        count += back != luma
    return count


deep = [
    first(scaled(flat(f"yuv444p{bits}le", 235 << bits - 8, 128 << bits - 8, np.uint16), "rgb48le", LIMITED, FULL), np.uint16)
    for bits in (10, 12, 16)
]
white = first(scaled(flat("yuv420p", 235, 128, np.uint8), "rgb24", LIMITED, FULL), np.uint8)
print(f"white in rgb48le, of 10, 12 and 16 bits: {deep}; of 8 bits in rgb24: {white}")
default, exact = wrong(Interpolation.BICUBIC), wrong(Interpolation.BICUBIC | EXACT)
print(f"levels of gray that do not come back: {default} of 220 by default, {exact} with the exact flags")
assert deep == [65283] * 3 and white == 255 and (default, exact) == (87, 0), "changed"
PYTHON
echo "as seen"
