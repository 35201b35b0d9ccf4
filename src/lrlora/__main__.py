"""`python -m lrlora` is `lrlora`."""

import sys

from lrlora.cli import main

sys.exit(main())
