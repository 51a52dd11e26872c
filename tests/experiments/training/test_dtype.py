"""A network that computes in bfloat16 keeps all that lasts in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.train import prepare
from experiments.training.loop import keys_of
from experiments.training.steps import Sums, compiled_quickly, make_train_step
from tests.experiments.small_runs import config


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    return {d: prepare(config(runs, dtype=d)) for d in ("float32", "bfloat16")}


def step_of(prepared):
    job, data = prepared.loop.job, prepared.loop._train
    step = make_train_step(
        job.network, job.optimizer, job.augmentation, job.plan.batch_size
    )
    arguments = (keys_of(0)[1], jnp.arange(1257), data)
    return step, ((prepared.state, Sums.zeros()), *arguments)


@pytest.mark.slow("prepares two networks")
@pytest.mark.parametrize(("dtype", "short"), [("float32", "f32"), ("bfloat16", "bf16")])
def test_every_convolution_computes_in_the_dtype(prepared, dtype, short):
    step, arguments = step_of(prepared[dtype])
    lines = str(jax.make_jaxpr(step)(*arguments)).splitlines()
    found = [
        line.split(":")[1].split("[")[0]
        for line in lines
        if "= conv_general_dilated" in line
    ]
    # Forward 7; backward twice as many, but for the images' own gradient.
    assert len(found) == 20 and set(found) == {short}


@pytest.mark.slow("compiles two networks")
def test_what_lasts_is_float32_and_close_to_a_step_in_float32(prepared):
    after, sums = {}, {}
    for dtype, one in prepared.items():
        step, arguments = step_of(one)
        after[dtype], sums[dtype] = compiled_quickly(step)(*arguments)
    for old, new in zip(
        jax.tree.leaves(prepared["bfloat16"].state),
        jax.tree.leaves(after["bfloat16"]),
        strict=True,
    ):
        assert old.dtype == new.dtype
        assert new.dtype != jnp.bfloat16
    assert sums["bfloat16"].loss.dtype == jnp.float32
    losses = {dtype: float(one.loss) / 128 for dtype, one in sums.items()}
    # Eight bits, through eight layers.
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)
    assert losses["bfloat16"] != losses["float32"]
    statistics = [one.model_state["stem"]["norm"]["mean"] for one in after.values()]
    np.testing.assert_allclose(*statistics, atol=0.02)


@pytest.mark.slow("prepares two networks")
def test_only_another_dtype_changes_the_folder(prepared):
    assert "dtype" not in prepared["float32"].run.config
    assert prepared["bfloat16"].run.config["dtype"] == "bfloat16"
