"""Today's optimizers on a language model, each by the same rule."""

TITLE = "Optimizers on a language model"
SOURCE = (
    "What the papers of these optimizers say of them, held against AdamW on a small "
    "transformer, each tuned alike: Jordan et al. 2024 (Muon), NorMuon 2025, Kosson et "
    "al. 2024 (rotational), Ginsburg et al. 2019 (NovoGrad), Yu et al. 2017 "
    "(normalized gradients), Roburin et al. 2020 (AdamSRT). Their values are of other "
    "models and data; the margins here were written down before the runs."
)
