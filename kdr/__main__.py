"""`python -m kdr`: the command line, without the `kdr` script."""

from kdr.cli.app import main

if __name__ == "__main__":
    main()
