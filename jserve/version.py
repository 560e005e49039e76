"""The version, where both processes can read it cheaply."""

__version__ = "0.1.0"
