#!/bin/bash
# Start the server with the admin that COUCHDB_USER and COUCHDB_PASSWORD name. It listens on the loopback interface only: socat is before it.
set -euo pipefail
umask 077
printf '{"admins": {"%s": "%s"}}' "$COUCHDB_USER" "$COUCHDB_PASSWORD" >/opt/couchdb/config.json
socat TCP-LISTEN:5984,fork,reuseaddr TCP:127.0.0.1:5985 &
exec node /opt/server/server.js --config /opt/couchdb/config.json --data /opt/couchdb/data --port 5985
