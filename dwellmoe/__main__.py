"""`python -m dwellmoe`: the `dwellmoe` command."""

from dwellmoe.interrupt import end_quietly_on_interrupt

end_quietly_on_interrupt()  # before the imports below

from dwellmoe.cli.main import main  # noqa: E402

if __name__ == "__main__":
    main()
