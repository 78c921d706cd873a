"""Pure functions on tensors: kernels, smoothing, kernel losses, spectra, SNR."""
