"""Train 30 dense layers on MNIST, with the gradient as it is and normalized.

Yu, Huang, Lin, Salakhutdinov, Carbonell, "Block-Normalized Gradient Method: An
Empirical Study for Training Deep Neural Network", 2017, arXiv 1707.04822, as in the
notebook `mnist_mlp` of the Keras implementation: 30 layers of 128, each followed by
BatchNorm and dropout 0.2, an L2 term of 1e-5 on their weights; batches of 128, rates of
1e-2, 1e-3 and 1e-4 for 10 epochs each, a new optimizer at each. SGD with Nesterov's
momentum of 0.9 and Adam, each plain and with the gradient of each array divided by its
largest element (`max`); the L2 term is part of what is divided.

    python -m experiments block_normalized_2017.deep_mlp --data-dir DIR

takes about half an hour on two CPU cores. It writes `deep_mlp.json`,
`deep_mlp_train.png` and `deep_mlp_test.png`, and a folder for each optimizer; the same
command again goes on where it stopped. It trains three seeds; `--seeds` says how many.
All training images are trained on, and the test images are tested after each epoch;
nothing is chosen by that. The loss on record is the cross-entropy, without the L2 term.

The example's text has two figures, of training and test, and makes no claim about them.
One schedule for all suits some of them better: where each has a rate of its own,
`deep_mlp_tuned` judges the claims of the paper's abstract. Seen here, means over three
seeds beside what the notebook printed of its one run:

                     test accuracy after epoch 10     20     30  training  notebook
    SGD                                     68.6%  71.0%  71.2%     1.08
    normalized SGD                          64.7%  82.0%  85.9%     0.57     77.22%
    Adam                                    70.8%  90.3%  91.4%     0.46     94.32%
    normalized Adam                         63.2%  83.3%  90.9%     0.51     94.60%

SGD gains three points in its last twenty epochs, where the others gain twenty and more.
Accuracies climb by stairs of about ten percent, the share of a class, in the notebook
as here; on which of them a single run ends differs.
"""

from collections.abc import Sequence

from experiments import data
from experiments.config import ask
from experiments.models.mlp import MLP
from experiments.papers.block_normalized_2017.curve_figures import Published, exhibit
from experiments.papers.block_normalized_2017.curves import (
    CurvesOptions,
    Task,
    run,
    with_test_curve,
)

NAME = "deep_mlp"
RATES = (1e-2, 1e-3, 1e-4)
BATCH, NORM = 128, "max"
SETTINGS = {"layers": 30, "width": 128, "dropout": 0.2, "l2": 1e-5}
PUBLISHED = Published(
    "printed in the notebook, test accuracy at the end",
    {"normalized SGD": 0.7722, "Adam": 0.9432, "normalized Adam": 0.9460},
)


def main(args: Sequence[str]) -> None:
    """Train four times, print the summary, and write records and figures."""
    config = ask(CurvesOptions, f"block_normalized_2017.{NAME}", args)
    run(config, NAME, lambda: load(config))


def load(config: CurvesOptions) -> Task:
    """Return the task with its data: the paper's, or the small one of a smoke run."""
    smaller = {"layers": 2, "width": 32} if config.smoke else {}
    images = (
        data.load("digits") if config.smoke else data.load("mnist", config.data_dir)
    )
    return Task(
        name=NAME,
        build=MLP,
        settings=SETTINGS | smaller,
        data=with_test_curve(images),
        batch_size=BATCH,
        norm=NORM,
        rates={"SGD": RATES, "Adam": RATES},
        epochs=1 if config.smoke else 10,
        published=PUBLISHED,
    )


EXHIBIT = exhibit(
    NAME,
    "30 dense layers",
    marks="; dotted lines where the learning rate changes",
    note="One published schedule for all four optimizers: which of them trains faster "
    "or generalizes better is judged where each has a rate of its own, by "
    "deep_mlp_tuned.",
)
