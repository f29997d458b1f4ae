"""`python -m stackwise …`: the command line, for torchrun and wherever the command itself is not on the path."""

from stackwise.cli import main

if __name__ == "__main__":
    main(prog_name="stackwise")
