"""The pilot: claims tokens from a PiCaS pool (CouchDB), runs a command for each, and writes the results back.

    python3 picas_pilot.pyz pilot.json

It runs on the nodes of a cluster: Python 3.6 or newer, standard library only. It imports only ``lifecycle`` from this
package; ``archive.py`` packs both into the one file that is sent. ``docs/reference/pilot.md`` describes the interface to the
command.

Threads: the main thread (``main.Pilot``) watches signals, lease and wall-clock. ``threads.Claimer`` fetches tokens,
each ``threads.Slot`` runs one at a time, ``reporter.Reporter`` writes results, and ``lease.Lease`` renews the lease.
They share ``work.Work``. A small process beside the pilot, ``guard.py``, ends its commands if it is killed.
"""
