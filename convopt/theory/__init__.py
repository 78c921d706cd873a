"""Pure functions on tensors: kernels, smoothing, kernel losses, SNR."""
