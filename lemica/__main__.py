"""`python -m lemica` is the command `lemica`."""

from lemica.cli.main import main

if __name__ == "__main__":
    main()
