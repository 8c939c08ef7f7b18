'use strict';
// The routes of the server.

const crypto = require('node:crypto');

const express = require('express');

const { requireAdmin, requireMember, requireServerAdmin } = require('./auth');
const { answerChanges } = require('./changes');
const { bulkRoutes, documentRoutes, jsonBody } = require('./documents');
const { CouchError, asCouchError, badRequest } = require('./errors');
const { findRoutes } = require('./find');
const { stringify } = require('./numbers');
const { jsonObject, multipleQueries, requestParameters } = require('./parameters');

const VERSION = '3.5.0'; // the version of CouchDB that this server implements
const VENDOR = 'embedded server of airflow-provider-picas';

function serverRoutes(app, databases, authentication) {
  app.get('/', (req, res) => {
    res.json({ couchdb: 'Welcome', version: VERSION, features: [], vendor: { name: VENDOR } });
  });
  app.get('/_up', (req, res) => res.json({ status: 'ok' }));
  app.get('/_uuids', (req, res) => {
    const count = Number(req.query.count ?? 1);
    res.json({ uuids: Array.from({ length: count }, () => crypto.randomUUID().replaceAll('-', '')) });
  });
  app.get('/_all_dbs', (req, res) => {
    requireServerAdmin(req.user);
    res.json(databases.names());
  });
  app.get('/_active_tasks', (req, res) => {
    requireServerAdmin(req.user);
    res.json([]);
  });
  app.route('/_session')
    .get((req, res) => res.json({
      ok: true,
      userCtx: req.user,
      info: {
        authentication_handlers: ['cookie', 'default'],
        ...(req.handler && { authenticated: req.handler }),
      },
    }))
    .post(express.urlencoded({ extended: false }), express.json(), async (req, res) => {
      const { name, password } = jsonObject(req.body ?? null);
      const user = await authentication.login(String(name), String(password));
      res.set('Set-Cookie', authentication.cookie(user.name)).json({ ok: true, ...user });
    })
    .delete((req, res) => {
      res.set('Set-Cookie', 'AuthSession=; Version=1; Path=/; HttpOnly; Max-Age=0').json({ ok: true });
    });
}

/** Refuse users without access to this database. */
function access(req, res, next) {
  requireMember(req.user, req.database);
  next();
}

function viewRoutes(router) {
  const path = '/_design/:design/_view/:view';
  const answer = (req, query) => req.database.views.query(req.params.design, req.params.view, query);
  router.get(path, async (req, res) => res.json(await answer(req, requestParameters(req))));
  router.post(path, jsonBody, async (req, res) => res.json(await answer(req, requestParameters(req))));
  router.post(`${path}/queries`, jsonBody, async (req, res) => {
    res.json(await multipleQueries(req, (query) => answer(req, query)));
  });
  router.get('/_design/:design/_info', async (req, res) => res.json(await req.database.views.info(req.params.design)));
}

function adminRoutes(router) {
  const securityLists = (security) => ['admins', 'members'].every((group) => (
    ['names', 'roles'].every((list) => security[group]?.[list] === undefined || Array.isArray(security[group][list]))));
  router.get('/_security', (req, res) => res.json(req.database.security));
  router.put('/_security', express.json({ type: () => true, strict: false }), async (req, res) => {
    requireAdmin(req.user, req.database);
    const security = jsonObject(req.body);
    if (!securityLists(security)) throw badRequest('names and roles must be JSON lists of strings');
    await req.database.setSecurity(security);
    res.json({ ok: true });
  });
  router.post('/_compact', jsonBody, (req, res) => {
    requireAdmin(req.user, req.database);
    req.database.pouch.compact().catch((error) => console.error(`compaction of ${req.database.name} failed`, error));
    res.status(202).json({ ok: true });
  });
  router.post('/_view_cleanup', jsonBody, (req, res) => {
    requireAdmin(req.user, req.database);
    res.status(202).json({ ok: true });
  });
  router.post('/_ensure_full_commit', jsonBody, (req, res) => {
    res.status(201).json({ ok: true, instance_start_time: '0' });
  });
}

function databaseRoutes(databases) {
  const router = express.Router({ caseSensitive: true, mergeParams: true });
  router.put('/', async (req, res) => {
    requireServerAdmin(req.user);
    await databases.create(req.params.db);
    res.status(201).json({ ok: true });
  });
  router.delete('/', async (req, res) => {
    requireServerAdmin(req.user);
    await databases.delete(req.params.db);
    res.json({ ok: true });
  });
  router.use((req, res, next) => {
    req.database = databases.get(req.params.db);
    next();
  }, access);
  router.get('/', async (req, res) => res.json(await req.database.info()));
  adminRoutes(router);
  viewRoutes(router);
  findRoutes(router);
  bulkRoutes(router);
  router.get('/_changes', answerChanges);
  router.post('/_changes', jsonBody, answerChanges);
  router.post('/_revs_diff', jsonBody, async (req, res) => {
    res.json(await req.database.pouch.revsDiff(jsonObject(req.body)));
  });
  documentRoutes(router);
  return router;
}

/** The Express application that serves `databases`. */
function makeApp(databases, authentication) {
  const app = express();
  app.disable('x-powered-by').disable('etag');
  app.set('query parser', 'simple').set('case sensitive routing', true);
  app.use((req, res, next) => {
    const [path, ...query] = req.url.split('?');
    req.url = [path.replaceAll('+', '%20'), ...query].join('?'); // CouchDB also decodes a plus in a path as a space
    res.json = (value) => res.type('json').send(stringify(value));
    res.set({ 'Server': `CouchDB/${VERSION} (embedded)`, 'Cache-Control': 'must-revalidate' });
    next();
  });
  app.use(authentication.middleware());
  serverRoutes(app, databases, authentication);
  app.use('/:db', databaseRoutes(databases));
  app.use(() => {
    throw new CouchError(405, 'method_not_allowed', 'Only GET, HEAD, POST, PUT and DELETE of known paths are allowed');
  });
  app.use((error, req, res, next) => { // eslint-disable-line no-unused-vars
    const { status, error: word, reason } = asCouchError(error);
    if (status >= 500) console.error(`${req.method} ${req.path}:`, error);
    if (res.headersSent) res.end();
    else res.status(status).json({ error: word, reason });
  });
  return app;
}

module.exports = { makeApp };
