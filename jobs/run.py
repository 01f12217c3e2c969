"""Entry for ``ray job submit --working-dir . -- python jobs/run.py VERB …``: any verb of leapray, on the cluster that runs the job."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from leapray.cli import main

if __name__ == "__main__":
    main()
