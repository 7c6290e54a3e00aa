"""Training, validation, prediction and what follows them."""
