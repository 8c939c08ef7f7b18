"""The exit codes of the pilot, and the exit codes that it assigns to tokens."""

# The exit codes of the pilot: those of sysexits.h if there is a fitting one.
EX_OK = 0
EX_USAGE = 64
EX_UNAVAILABLE = 69  # the database did not answer for ``outage`` seconds
EX_SOFTWARE = 70  # a bug in this program
EX_IOERR = 74  # the scratch folder is not writable, or no process can be started
EX_TEMPFAIL = 75  # results could not be sent; they are in the submission's folder
EX_NOPERM = 77  # the database refuses the credentials, or its certificate does not verify
EX_CONFIG = 78  # an error in pilot.json, picasconfig.py, the database or its views
EXIT_BAD_OUTPUT = 65  # exit code of a token whose command ended with 0 and wrote invalid JSON to its output file
EXIT_TIME_LIMIT = 124  # exit code of a token that exceeded its time limit, as in timeout(1)


class Failed(Exception):
    """The pilot cannot work. The message says why; ``code`` is its exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code
