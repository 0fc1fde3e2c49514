"""The `kdr` command from a clone, without installing it: `python orchestrate.py --help`."""

from kdr.cli.app import main

if __name__ == "__main__":
    main()
