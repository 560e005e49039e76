"""What one grammar may cost: the same limits where it is tried before admission and where it runs."""

from llguidance import LLParserLimits

MAX_LEXER_STATES = 1 << 16
"""States of a grammar's lexer, about 500 bytes each, which are made as the output reaches them."""
MAX_COMPILED_BYTES = 16 << 20
"""Memory of a grammar when it has been compiled and tried. Schemas and label lists of 10,000 entries take 6 MiB."""
GROWTH = 4
"""Times that, and no more, a grammar grows while it runs on."""
KEPT_BYTES = 256 << 20
"""Memory of all grammars that stay compiled after their last use."""


def parser_limits() -> LLParserLimits:
    """llguidance's own limits: on a grammar's size, on the lexer's states, and on the work of one mask."""
    return LLParserLimits(verbose_errors=False, max_lexer_states=MAX_LEXER_STATES)
