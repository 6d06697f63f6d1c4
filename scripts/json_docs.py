"""Write docs/json.md: what every verb prints with --json."""

from pathlib import Path

from graphopt.cli.shapes import markdown

PAGE = Path(__file__).resolve().parents[1] / "docs" / "json.md"

if __name__ == "__main__":
    PAGE.write_text(markdown(), encoding="utf-8")
