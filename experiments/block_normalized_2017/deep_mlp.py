"""Train 30 dense layers on MNIST, with the gradient as it is and normalized.

Yu, Huang, Lin, Salakhutdinov, Carbonell, "Block-Normalized Gradient Method: An
Empirical Study for Training Deep Neural Network", 2017, arXiv 1707.04822, as in the
example of the Keras implementation: 30 layers of 128, each followed by BatchNorm and
dropout 0.2, an L2 term of 1e-5 on the weights; batches of 128, rates of 1e-2, 1e-3 and
1e-4 for 10 epochs each. SGD with momentum 0.9 and Adam, each plain and with the
gradient of each array divided by its largest element (`max`); the L2 term is part of
what is divided.

    python -m experiments block_normalized_2017.deep_mlp --data-dir DIR

takes about half an hour on two CPU cores. It writes `deep_mlp.json`,
`deep_mlp_train.png` and `deep_mlp_test.png`, and a folder for each optimizer; the same
command again goes on where it stopped. All training images are trained on, and the test
images are tested after each epoch; nothing is chosen by that. The loss on record is the
cross-entropy, without the L2 term.

No value is published; there are two figures, of training and test. The example's text
makes no claim about them: those that RESULTS.md judges are of the paper's abstract.
Seen, one run of each:

                     test accuracy after epoch 10     20     30  training loss
    SGD                                     69.4%  71.8%  71.8%           1.03
    normalized SGD                          45.1%  75.6%  85.6%           0.58
    Adam                                    72.2%  92.5%  93.8%           0.45
    normalized Adam                         74.7%  85.3%  86.7%           0.49

SGD stops early, as its gradients shrink, and normalized SGD does not. Adam, which has
no such trouble, is better off without.
"""

from collections.abc import Sequence

import tyro

from experiments import data
from experiments.block_normalized_2017.curves import (
    CurvesConfig,
    Task,
    run,
    with_test_curve,
)
from experiments.models.mlp import MLP

NAME = "deep_mlp"
RATES = (1e-2, 1e-3, 1e-4)
PUBLISHED = (
    "printed in the notebook, test accuracy at the end: normalized SGD 77.22 %, "
    "Adam 94.32 %, normalized Adam 94.60 %"
)


def main(args: Sequence[str]) -> None:
    """Train four times, print the summary, and write records and figures."""
    prog = "python -m experiments block_normalized_2017.deep_mlp"
    config = tyro.cli(CurvesConfig, args=args, prog=prog)
    run(config, NAME, lambda: load(config))


def load(config: CurvesConfig) -> Task:
    """Return the task with its data: the paper's, or the small one of a smoke run."""
    settings = {"layers": 30, "width": 128, "dropout": 0.2, "l2": 1e-5}
    images = (
        data.load("digits") if config.smoke else data.load("mnist", config.data_dir)
    )
    if config.smoke:
        settings |= {"layers": 2, "width": 32}
    return Task(
        name=NAME,
        build=MLP,
        settings=settings,
        data=with_test_curve(images),
        batch_size=128,
        norm="max",
        rates={"SGD": RATES, "Adam": RATES},
        epochs=1 if config.smoke else 10,
        published=PUBLISHED,
    )
