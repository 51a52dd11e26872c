"""What a stored figure or text says, which is the same on every machine.

There a mean is rounded otherwise, and a line drawn with other pixels.
"""

import json
import re

import numpy as np
from PIL import Image

from experiments.report.figures import CONTENTS

DECIMAL = re.compile(r"\d+\.\d+")


def figure_of(path):
    """The size of a PNG that opens, and what its figure is made of."""
    with Image.open(path) as image:
        image.load()
        return image.size, json.loads(image.info[CONTENTS])


def assert_same_figure(path, other_path):
    (size, own), (other_size, other) = map(figure_of, (path, other_path))
    assert size == other_size
    assert_same_text("\n".join(own["words"]), "\n".join(other["words"]))
    assert len(own["numbers"]) == len(other["numbers"])
    for ours, theirs in zip(own["numbers"], other["numbers"], strict=True):
        # Of the four digits that are stored the last may be rounded otherwise.
        np.testing.assert_allclose(ours, theirs, rtol=1.5e-3, atol=1e-9)


def assert_same_text(text, other):
    """But for the last digit of decimal fractions."""
    assert DECIMAL.sub("#", text) == DECIMAL.sub("#", other)
    for own, its in zip(DECIMAL.findall(text), DECIMAL.findall(other), strict=True):
        digits = len(own.partition(".")[2])
        assert len(its.partition(".")[2]) == digits
        assert abs(float(own) - float(its)) < 1.5 * 10**-digits, (own, its)
