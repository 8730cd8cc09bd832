"""Code generated from proto/stepd/v1; `make proto` writes it anew."""
