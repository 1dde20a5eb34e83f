"""The hot operations: each has a plain PyTorch reference in model/ and a hand-written form here."""
