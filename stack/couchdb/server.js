'use strict';
// An embedded server with CouchDB's protocol, for this machine only.
//
//   node server.js --config FILE --data FOLDER --port PORT
//
// FILE is JSON: {"admins": {"name": "password"}}. Only its owner may read it, since it contains passwords.

const fs = require('node:fs');
const http = require('node:http');
const { parseArgs } = require('node:util');

const { makeApp } = require('./app');
const { Authentication } = require('./auth');
const { Databases } = require('./databases');

const IDLE = 300000; // ms that an idle connection stays open: the same as in CouchDB, so that client sessions survive

function readConfig(file) {
  const { mode } = fs.statSync(file);
  if (mode & 0o077) throw new Error(`${file} contains passwords and others can read it: run chmod 600 on it.`);
  const { admins } = JSON.parse(fs.readFileSync(file, 'utf8'));
  if (!admins || Object.keys(admins).length === 0) throw new Error(`${file} has no server admin under "admins".`);
  return { admins };
}

async function main() {
  const { values } = parseArgs({
    options: { config: { type: 'string' }, data: { type: 'string' }, port: { type: 'string', default: '5984' } },
  });
  if (!values.config || !values.data) throw new Error('Usage: node server.js --config FILE --data FOLDER --port PORT');
  const { admins } = readConfig(values.config);
  const databases = await Databases.open(values.data);
  const server = http.createServer(makeApp(databases, new Authentication(admins, databases)));
  server.keepAliveTimeout = IDLE;
  server.requestTimeout = 0;
  server.listen(Number(values.port), '127.0.0.1', () => console.log(`Listening on port ${values.port}.`));
  server.on('error', fail);

  const stop = async () => {
    server.close();
    server.closeAllConnections();
    await databases.close();
    process.exit(0);
  };
  for (const signal of ['SIGTERM', 'SIGINT']) process.once(signal, () => stop().catch(fail));
}

function fail(error) {
  console.error(error.message);
  process.exit(1);
}

main().catch(fail);
