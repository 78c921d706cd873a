"""What is recorded of a run after each epoch."""

SECONDS = ("seconds_training", "seconds_evaluation")
"""Curves that tell of time."""

CURVES = (
    "train_loss",
    "gradient_norm",
    "test_loss",
    "test_accuracy",
    "validation_accuracy",
    "noisy_validation_accuracy",
    "test_rmse",
    "test_r2",
    "validation_rmse",
    "test_nats",
    "validation_nats",
    "wrong_labels_learnt",
    "rho",
    "annealing_factor",
    "average_in_place",
    "fgsm_accuracy",
    "pgd_accuracy",
    *SECONDS,
)
"""What is recorded per epoch: losses, the measures of the task (see ``tasks.TASKS``), the mean gradient norm, seconds.

Of a classification, the loss is in nats and the accuracy from 0 to 1.

Of runs with label noise, the share of those that the network predicts, and the accuracy on validation labels that are
as noisy as the training's; of annealed runs, the agreement of gradients and the factor on the learning rate (see
``SNRAnnealing``); of runs with averaged weights, whether these are what is evaluated (see ``WeightAveraging``); of runs
with an adversary, the test accuracy against either.
"""
