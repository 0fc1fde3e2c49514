"""The command line of kdr: `python orchestrate.py --help`."""

from kdr.cli.app import main

if __name__ == "__main__":
    main()
