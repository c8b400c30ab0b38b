"""`vmat-diffusion preprocess` with this checkout's oar_mapping.json; takes --relax_filter and the rest."""

import sys
from pathlib import Path

from vmat_diffusion.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["preprocess", "--mapping", str(Path(__file__).resolve().parents[1] / "oar_mapping.json")]
    main()
