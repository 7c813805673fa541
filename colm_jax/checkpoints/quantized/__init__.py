"""Checkpoints that are already quantised: AWQ, GPTQ, FP8, MXFP4, compressed-tensors; see `scheme.py`."""
