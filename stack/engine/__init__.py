"""A Docker engine for the time of a command, on a machine that has none: Debian's packages below ``.stack/``,
nothing installed.
"""
