'use strict';
// Mango: `_find`, `_index` and `_explain`, by pouchdb-find.

const { requireAdmin } = require('./auth');
const { jsonBody } = require('./documents');
const { CouchError } = require('./errors');
const { jsonObject } = require('./parameters');

function findRoutes(router) {
  router.post('/_find', jsonBody, async (req, res) => {
    const { selector } = jsonObject(req.body);
    if (selector === undefined) {
      throw new CouchError(400, 'missing_required_key', 'Missing required key: selector');
    }
    if (selector === null || typeof selector !== 'object' || Array.isArray(selector)) {
      throw new CouchError(400, 'invalid_selector_json', 'Selector must be a JSON object');
    }
    const { docs, warning } = await req.database.pouch.find(req.body);
    res.json({ docs, bookmark: 'nil', ...(warning && { warning }) });
  });
  router.post('/_explain', jsonBody, async (req, res) => {
    res.json(await req.database.pouch.explain(jsonObject(req.body)));
  });
  router.get('/_index', async (req, res) => res.json(await req.database.pouch.getIndexes()));
  router.post('/_index', jsonBody, async (req, res) => {
    requireAdmin(req.user, req.database);
    const index = await req.database.pouch.createIndex(jsonObject(req.body));
    req.database.written([index.id]);
    res.json(index);
  });
  router.delete('/_index/:design/json/:name', deleteIndex);
  router.delete('/_index/_design/:design/json/:name', deleteIndex);
}

async function deleteIndex(req, res) {
  const { design, name } = req.params;
  requireAdmin(req.user, req.database);
  const ddoc = design.startsWith('_design/') ? design : `_design/${design}`;
  await req.database.pouch.deleteIndex({ ddoc, name, type: 'json' });
  req.database.written([ddoc]);
  res.json({ ok: true });
}

module.exports = { findRoutes };
