"""`jserve complete`: what a model writes after a text, without a chat template."""

import sys
from collections.abc import Iterable, Iterator, Sequence

from jserve.commands.client.conversation import Screen
from jserve.commands.client.options import add_client_options, connect, sampling_fields
from jserve.commands.parser import Parser


def run(argv: Sequence[str]) -> None:
    """Continue the text that is given or piped in, or one line after the other. Raises ServerError."""
    parser = Parser(prog="jserve complete", description="Let a running server continue a text.", allow_abbrev=False)
    add_client_options(parser)
    parser.add_argument("-q", "--quick", metavar="TEXT", help="one text; what follows it is printed, and that is all")
    options = parser.parse_args(list(argv))
    connection, model = connect(options)
    screen = Screen(is_terminal=sys.stdout.isatty())
    texts: Iterable[str]
    texts = [options.quick] if options.quick is not None else _lines() if sys.stdin.isatty() else [sys.stdin.read()]
    for text in texts:
        for piece in connection.complete(model, text, **sampling_fields(options)):
            screen.show(piece)
        screen.end()


def _lines() -> Iterator[str]:
    while True:
        try:
            yield input("> ")
        except EOFError:
            return
