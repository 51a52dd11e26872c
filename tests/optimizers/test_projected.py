import pytest

import normopt
from tests.trajectories import cases, largest_miss, load

SYSTEM = "E_adamp"
OPTIMIZERS = {"AdamP": normopt.adamp, "SGDP": normopt.sgdp}


def rebuilt(meta):
    kwargs = dict(meta["kwargs"])
    rate = kwargs.pop("lr")
    if "betas" in kwargs:
        kwargs["b1"], kwargs["b2"] = kwargs.pop("betas")
    # The layout is torch's: channels first.
    return OPTIMIZERS[meta["class"]](rate, **kwargs, channel_axes=(0,))


def test_all_recorded_cases_are_here():
    assert len(cases(SYSTEM)) == 4


@pytest.mark.parametrize("case", cases(SYSTEM))
def test_follows_the_original(case):
    recording = load(SYSTEM, case)
    miss = largest_miss(recording, lambda: rebuilt(recording.meta))
    print(case, miss)
    # The original has eps in the cosine and in the direction that it projects on.
    assert miss <= 1e-6 + 2e-8
