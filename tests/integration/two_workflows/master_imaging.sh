#!/bin/bash
echo "imaging of $1"
case $1 in *bad) echo "no calibrator" >&2; exit 3;; esac
echo '{"msin": []}' > input.json
