"""`python -m vlmspec` is the command `vlmspec`."""

from vlmspec.cli import main

if __name__ == "__main__":
    main()
