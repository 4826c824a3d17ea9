"""What a user can mend, told apart from every other error."""


class UserError(ValueError):
    """A flag, a setting, a file or a value in it is not usable.

    Its text names it, what was expected and what to do. The command-line tools print that text in
    one line, without a traceback, and exit with code 2 (see `cli.command`).
    """
