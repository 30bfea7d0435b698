"""`python -m bilevax` runs the command `bilevax`."""

from bilevax.cli import main

if __name__ == "__main__":
    main()
