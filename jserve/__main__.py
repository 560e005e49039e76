"""`python -m jserve` is `jserve`."""

from jserve.cli import main

if __name__ == "__main__":
    main()
