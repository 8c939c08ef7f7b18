"""The routes below ``/picas/api``."""
