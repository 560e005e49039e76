"""Options about tool calls and reasoning."""

import argparse


def add_speech_options(parser: argparse.ArgumentParser) -> None:
    """Add the group."""
    group = parser.add_argument_group("tools and reasoning")
    group.add_argument(
        "--tool-call-parser",
        default="auto",
        metavar="NAME",
        help="format of the model's tool calls, by jserve's or vLLM's name; auto recognises it from the chat template",
    )
    group.add_argument(
        "--reasoning-parser",
        default="auto",
        metavar="NAME",
        help="format of the model's reasoning; auto recognises it from the chat template, none leaves it in the text",
    )
    group.add_argument(
        "--exclude-tools-when-tool-choice-none",
        dest="exclude_tools_when_none",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="with tool_choice none, do not show the tools to the model either",
    )
    # Tools are on by default; the flag is accepted so that command lines for vLLM work.
    group.add_argument("--enable-auto-tool-choice", action="store_true", help=argparse.SUPPRESS)
