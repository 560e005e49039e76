"""`jserve chat`: talk to a running server from a terminal."""

import sys
from collections.abc import Sequence

from jserve.commands.client.conversation import Conversation, answer_once, converse
from jserve.commands.client.options import add_client_options, connect, sampling_fields
from jserve.commands.parser import Parser


def run(argv: Sequence[str]) -> None:
    """Answer the message that is given or piped in, or else talk. Raises ServerError."""
    parser = Parser(prog="jserve chat", description="Talk to a running server.", allow_abbrev=False)
    add_client_options(parser)
    parser.add_argument("--system-prompt", default="", metavar="TEXT", help="what the model is told first")
    parser.add_argument("-q", "--quick", metavar="TEXT", help="one message; its answer is printed, and that is all")
    options = parser.parse_args(list(argv))
    connection, model = connect(options)
    conversation = Conversation(connection, model, options.system_prompt, sampling_fields(options))
    text = options.quick if options.quick is not None or sys.stdin.isatty() else sys.stdin.read()
    if text is None:
        converse(conversation)
    else:
        answer_once(conversation, text)
