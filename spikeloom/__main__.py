"""`python -m spikeloom` is the `spikeloom` command."""

import sys

from spikeloom.cli import main

if __name__ == "__main__":
    sys.exit(main())
