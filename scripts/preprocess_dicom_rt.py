"""`vmat-diffusion preprocess` with this checkout's oar_mapping.json; takes --relax_filter and the rest.

It goes on with what is in the output folder, so that the command may be given again, also with
--relax_filter: finished cases are kept, those that were left out are tried again.
"""

import sys
from pathlib import Path

from vmat_diffusion.cli import main

if __name__ == "__main__":
    mapping = Path(__file__).resolve().parents[1] / "oar_mapping.json"
    sys.argv[1:1] = ["preprocess", "--mapping", str(mapping), "--resume"]
    main()
