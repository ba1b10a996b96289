"""The one exception that the programs print instead of a traceback."""


class UserError(ValueError):
    """Something that the user can put right: a config value, a file, the network.

    The message says what is wrong, where, and what to do. `config.run` prints it as one
    line and ends the program with status 2.
    """
