"""Model repositories for the Triton Inference Server."""

__all__ = ["RepositoryOptions", "check_repository", "write_repository"]

from graphopt.deploy.triton.check import check_repository
from graphopt.deploy.triton.repository import RepositoryOptions, write_repository
