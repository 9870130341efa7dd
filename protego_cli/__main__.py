"""`protego`, and `python -m protego_cli`."""

from protego_cli.cli.app import main

if __name__ == "__main__":
    main()
