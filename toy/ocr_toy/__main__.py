"""Run the symbolic study: python -m ocr_toy."""

from ocr_toy.cli import app

if __name__ == "__main__":
    app(prog_name="ocr_toy")
