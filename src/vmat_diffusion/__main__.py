"""`python -m vmat_diffusion`."""

from vmat_diffusion.cli import main

if __name__ == "__main__":
    main()
