"""The exit codes of the pilot, and the exit codes that it assigns to tokens."""

# The exit codes of the pilot: those of sysexits.h if there is a fitting one.
EX_OK = 0  # no tokens remain; or the pilot was drained, or received a signal and released its tokens
EX_USAGE = 64  # the pilot was started without pilot.json
EX_UNAVAILABLE = 69  # the database did not answer, or at the start accepted no writes, for `outage` seconds
EX_SOFTWARE = 70  # a bug in the pilot
EX_IOERR = 74  # this node cannot run commands: the scratch folder is full or not writable, or no process can be started
EX_TEMPFAIL = 75  # results could not be sent; they are in unsent/ of the submission's folder
EX_NOPERM = 77  # the database refuses the credentials, or every claim; or its certificate does not verify
EX_CONFIG = 78  # an error in pilot.json, picasconfig.py, the database or its views
EXIT_BAD_OUTPUT = 65  # the command ended with 0, and its output file or a line of its tokens file is invalid
EXIT_TIME_LIMIT = 124  # the command exceeded its time limit, as in timeout(1)


class Failed(Exception):
    """The pilot cannot work. The message says why; ``code`` is its exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code
