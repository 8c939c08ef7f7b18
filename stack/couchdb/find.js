'use strict';
// Mango: `_find`, `_index` and `_explain`, with pouchdb-find.

const { requireAdmin } = require('./auth');
const { jsonBody } = require('./documents');
const { CouchError } = require('./errors');
const { rounded } = require('./numbers');
const { jsonObject } = require('./parameters');

const LIMIT = 25; // default number of documents in a page

function checkQuery({ selector, limit = 0, skip = 0 }) {
  if (selector === undefined) {
    throw new CouchError(400, 'missing_required_key', 'Missing required key: selector');
  }
  if (selector === null || typeof selector !== 'object' || Array.isArray(selector)) {
    throw new CouchError(400, 'invalid_selector_json', 'Selector must be a JSON object');
  }
  for (const number of [limit, skip]) {
    if (!(Number.isInteger(number) && number >= 0)) {
      throw new CouchError(400, 'invalid_non_neg_integer', `${number} is not an integer greater than or equal to zero`);
    }
  }
}

/** Convert pouchdb-find's errors to CouchDB's. */
function findError(error) {
  const message = String(error.message);
  const operator = /^unknown operator "(.*?)"/.exec(message);
  if (operator) return new CouchError(400, 'invalid_operator', `Invalid operator: ${operator[1]}`);
  if (/^Cannot sort on field/.test(message) || error.error === 'no_usable_index') {
    return new CouchError(400, 'no_usable_index', 'No index exists for this sort, try indexing by the sort fields.');
  }
  return error;
}

const bookmarkOf = (id, place) => Buffer.from(JSON.stringify([id, place])).toString('base64url');

/** The number of documents before a bookmark, even if its own document is gone. */
function placeOf(bookmark, docs) {
  try {
    const [id, place] = JSON.parse(Buffer.from(bookmark, 'base64url').toString());
    const now = docs.findIndex((doc) => doc._id === id);
    return now < 0 ? place : now + 1;
  } catch {
    throw new CouchError(400, 'invalid_bookmark', `Invalid bookmark value: ${JSON.stringify(bookmark)}`);
  }
}

/** A page of results in CouchDB's format. The search is repeated for each page. */
async function find(pouch, query) {
  checkQuery(query);
  const { limit = LIMIT, skip = 0, bookmark, fields, ...asked } = query;
  const all = { ...asked, limit: Number.MAX_SAFE_INTEGER, ...(fields && { fields: [...fields, '_id'] }) };
  const { docs, warning } = await pouch.find(all).catch((error) => { throw findError(error); });
  const start = (bookmark ? placeOf(bookmark, docs) : 0) + skip;
  const page = docs.slice(start, start + limit);
  const following = page.length > 0 ? bookmarkOf(page.at(-1)._id, start + page.length) : 'nil';
  if (fields && !fields.includes('_id')) page.forEach((doc) => { delete doc._id; });
  return { docs: page, bookmark: following, ...(warning && { warning }) };
}

function findRoutes(router) {
  router.post('/_find', jsonBody, async (req, res) => {
    res.json(await find(req.database.pouch, rounded(jsonObject(req.body))));
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
