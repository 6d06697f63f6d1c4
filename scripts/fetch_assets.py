"""Fetch the real models and texts that demos and tests use into the asset cache.

    python scripts/fetch_assets.py                  all of them
    python scripts/fetch_assets.py smollm2          one

The cache is $GRAPHOPT_ASSETS, by default ~/.cache/graphopt/assets. What is there already is verified and kept.
"""

import argparse
import sys

from graphopt.errors import GraphOptError
from graphopt.models import assets


def main() -> int:
    """Fetch what the command line names; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(assets.ASSETS)} (default: all)")
    try:
        for name in parser.parse_args().names or assets.ASSETS:
            sys.stdout.write(f"{name}: {assets.fetch(name)}\n")
            sys.stdout.flush()
    except GraphOptError as e:
        sys.stderr.write(f"error: {e}\n")
        return e.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
