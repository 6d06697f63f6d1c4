"""Checkpoint and Python package for TensorRT-LLM's PyTorch flow."""

__all__ = ["PackageOptions", "write_package"]

from graphopt.deploy.tensorrt_llm.folder import PackageOptions, write_package
