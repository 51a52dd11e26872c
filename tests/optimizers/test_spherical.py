import pytest

import normopt
from tests.trajectories import cases, largest_miss, load

SYSTEM = "A_adamsrt"
OPTIMIZERS = {
    "AdamS": normopt.adams,
    "AdamSRT": normopt.adamsrt,
    "SGDMRT": normopt.sgdmrt,
    "AdamG": normopt.adamg,
}
ARGUMENTS = {"momentum", "dampening", "weight_decay"}


def axes_of(meta):
    """Each leaf's channel axes, from the flags of the original."""
    default = meta["kwargs"].get("channel_wise", False)
    axes = {}
    for leaf, flags in meta["per_leaf"].items():
        channel_wise = flags.get("channel_wise", default)
        # The flag of the original's AdamG means its opposite.
        if meta["class"] == "AdamG":
            channel_wise = not channel_wise
        dims = flags.get("channel_dims", [0] if channel_wise else None)
        axes[f"^{leaf}$"] = None if dims is None else tuple(dims)
    return axes


def rebuilt(meta):
    kwargs = dict(meta["kwargs"])
    kwargs.pop("channel_wise", None)
    rate = kwargs.pop("lr", 1e-3)
    if "betas" in kwargs:
        kwargs["b1"], kwargs["b2"] = kwargs.pop("betas")
    return OPTIMIZERS[meta["class"]](rate, **kwargs, channel_axes=axes_of(meta))


def not_followed(meta):
    """AdamG's leaves of one dimension: the original makes each element +-1."""
    if meta["class"] != "AdamG":
        return []
    return [
        leaf
        for leaf, shape in meta["leaves"].items()
        if len(shape) == 1 and axes_of(meta)[f"^{leaf}$"] is not None
    ]


def test_all_recorded_cases_are_here():
    assert len(cases(SYSTEM)) == 15


@pytest.mark.parametrize("case", cases(SYSTEM))
def test_follows_the_original(case):
    recording = load(SYSTEM, case)
    meta = recording.meta
    miss = largest_miss(recording, lambda: rebuilt(meta), not_followed(meta))
    # The original also adds its eps to the denominators of its transport.
    assert miss <= 1e-6 + 2e-8, miss
    print(case, miss)
