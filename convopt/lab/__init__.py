"""The experiments: data, models, training, records, sweeps, statistics, figures. Needs the extra ``convopt[lab]``."""
