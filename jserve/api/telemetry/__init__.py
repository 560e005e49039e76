"""What operators see of the server: metrics, traces, and a word when decoding stalls."""
