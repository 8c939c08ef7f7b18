"""The life of a token: its states, what pilots write into it, and when its holder counts as dead.

The pilot and the provider both import these modules, so that each rule exists once. They run on the nodes of a cluster:
Python 3.6 or newer, standard library only. Nothing here does I/O, except ``credentials``, which reads the PiCaS
client's files.
"""
