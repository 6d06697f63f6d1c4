"""MixQ (SC'24)."""
