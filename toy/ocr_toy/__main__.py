"""Run the symbolic study: python -m ocr_toy."""

import sys

from ocr_toy.cli import main

if __name__ == "__main__":
    sys.exit(main())
