"""Where a covariance comes from: generated text, given text, mixtures, a server that samples."""
