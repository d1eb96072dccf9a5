"""`dwellmoe serve`: an OpenAI-style HTTP server over a model and its adapters."""

from dwellmoe.serving.command_line import Options, check, parse
from dwellmoe.serving.settings import ServingSettings

USAGE = "dwellmoe serve MODEL [--adapter FOLDER] [--expert_budget 25%] [options]"
ABOUT = (
    "Serves a model to OpenAI's clients at http://HOST:PORT/v1, with its experts in memory or in a cache of "
    "--expert_budget, and a page of live figures at /. MODEL is a folder, or a name on the hub."
)


def run(words: list[str]) -> None:
    """Serves until a stop signal. Raises UserError."""
    options = parse_options(words)
    check(options)
    from dwellmoe.serving.listening import listening_socket

    with listening_socket(options.own) as socket:  # before the model is loaded, which takes longer
        from dwellmoe.loading import quiet
        from dwellmoe.serving.server import serve

        quiet()
        serve(socket, options)


def parse_options(words: list[str]) -> Options:
    """The options of a command line. Raises UserError."""
    return parse(words, ServingSettings, USAGE, ABOUT)
