"""Train a small convolutional network on CIFAR-10, plain and normalized.

Yu, Huang, Lin, Salakhutdinov, Carbonell, "Block-Normalized Gradient Method: An
Empirical Study for Training Deep Neural Network", 2017, arXiv 1707.04822, as in the
notebook `cifar_cnn` of the Keras implementation: convolutions of 32, 32, a pool, 64,
64, a pool, 512 units, dropout 0.25, 0.25 and 0.5; batches of 128, no augmentation. SGD
with Nesterov's momentum of 0.9 and Adam, each plain and with the gradient of each array
divided by its length (`l2`). Here they train for 50 epochs, at 0.01 and 0.001: those
are the first rates of the notebook, which goes on to smaller ones every 15 epochs.

    python -m experiments block_normalized_2017.cifar_cnn --data-dir DIR

takes about sixteen hours on two CPU cores, by the 190 images/s of a short run: no whole
one has been made yet. Stored is that of `--images 5000`, a tenth of them, which takes
two and a half hours. It writes `cifar_cnn.json`, `cifar_cnn_train.png` and
`cifar_cnn_test.png`, and a folder for each optimizer; the same command again goes on
where it stopped. It trains three seeds, which is what claims are judged
from; `--seeds` says how many. All training images are trained on, and the test images
are tested after each epoch; nothing is chosen by that.

The example's text has two figures, of training and test, and makes no claim about them:
those that RESULTS.md judges are of the paper's abstract. Seen, after 50 epochs of the
first 5,000 images, one run of each, is a test accuracy of 57.1 % by SGD and 55.7 %
normalized, of 59.2 % by Adam and 59.0 % normalized, where 82, 73, 95 and 93 % of the
training images are right: a tenth of them is learnt by heart. Normalizing gains nothing
here; one run of so few is no verdict.
"""

from collections.abc import Sequence

from experiments import data
from experiments.config import ask
from experiments.models.cnn import CNN
from experiments.papers.block_normalized_2017.curve_figures import (
    ACCURACY,
    Published,
    claims_of,
    exhibit,
    lacking,
)
from experiments.papers.block_normalized_2017.curves import (
    CurvesOptions,
    Task,
    run,
    with_test_curve,
)
from experiments.report.judging import Check, Claim

NAME = "cifar_cnn"
NETWORK = "the convolutional network"
RATES = {"SGD": (1e-2,), "Adam": (1e-3,)}
PUBLISHED = Published(
    "printed in the notebook, test accuracy after 60 epochs at falling rates",
    {"normalized SGD": 0.7954},
)


def main(args: Sequence[str]) -> None:
    """Train four times, print the summary, and write records and figures."""
    config = ask(CurvesOptions, f"block_normalized_2017.{NAME}", args)
    run(config, NAME, lambda: load(config))


def load(config: CurvesOptions) -> Task:
    """Return the task with its data: the paper's, or the small one of a smoke run."""
    settings = {"widths": [32, 64], "hidden": 512, "dropout": [0.25, 0.5]}
    if config.smoke:
        images = data.load("digits")
        settings |= {"widths": [4], "hidden": 16}
    else:
        images = data.load("cifar10", config.data_dir)
    return Task(
        name=NAME,
        build=CNN,
        settings=settings,
        data=with_test_curve(images),
        batch_size=128,
        norm="l2",
        rates=RATES,
        epochs=3 if config.smoke else 50,
        published=PUBLISHED,
    )


EXHIBIT = exhibit(
    NAME,
    NETWORK,
    (
        *claims_of(NETWORK, PUBLISHED),
        Claim(
            "On a convolutional network, the normalized gradient does better with SGD "
            "than with Adam.",
            (Check(ACCURACY, "normalized SGD", "normalized Adam"),),
            lacking,
        ),
    ),
)
