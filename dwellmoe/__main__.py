"""`python -m dwellmoe`: the `dwellmoe` command."""

from dwellmoe.cli.main import main

main()
