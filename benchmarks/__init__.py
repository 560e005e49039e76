"""Scripts that measure jserve and print tables and JSON; see README.md."""
