"""`python -m pyprocrastinate` is the command `pyprocrastinate`."""

from pyprocrastinate.cli import main

if __name__ == "__main__":
    main()
