'use strict';
// Requests for documents and their attachments: one at a time and in bulk.

const express = require('express');

const { CouchError, badRequest, conflict, notFound, queryError } = require('./errors');
const { parse } = require('./numbers');
const { jsonObject, multipleQueries, requestParameters } = require('./parameters');
const { checkForm, checkId, isLocal, writeDocument, writeDocuments } = require('./writes');

const REQUEST_LIMIT = '256mb';
const parseBytes = express.raw({ limit: REQUEST_LIMIT, type: () => true });

function readJson(req, res, next) {
  req.body = Buffer.isBuffer(req.body) && req.body.length > 0 ? parse(req.body.toString()) : undefined;
  next();
}

const parseJson = [parseBytes, readJson];

/** A POST must have the Content-Type of JSON; CouchDB ignores the Content-Type of a PUT. */
function requireJson(req, res, next) {
  if (!/json/.test(req.headers['content-type'] ?? '')) {
    throw new CouchError(415, 'bad_content_type', 'Content-Type must be application/json');
  }
  next();
}

const jsonBody = [requireJson, ...parseJson];

/** The revision that a write replaces: from the URL, If-Match or the body, which must agree. */
function revisionOf(req, body = {}) {
  const match = req.headers['if-match']?.replaceAll('"', '');
  const given = [...new Set([req.query.rev, match, body._rev].filter((rev) => rev !== undefined && rev !== ''))];
  if (given.length > 1) throw badRequest('Document rev from request body and query string have different values');
  return given[0];
}

function documentIn(req) {
  if (req.body === undefined) throw badRequest('invalid UTF-8 JSON');
  if (req.body === null || typeof req.body !== 'object' || Array.isArray(req.body)) {
    throw badRequest('Document must be a JSON object');
  }
  return req.body;
}

function sendWritten(req, res, result, status) {
  res.status(req.query.batch === 'ok' ? 202 : status).set('ETag', `"${result.rev}"`).json(result);
}

async function getDocument(req, res) {
  const { database, query } = req;
  const id = req.documentId;
  if (isLocal(id)) {
    const doc = await database.local(id);
    if (!doc) throw notFound('missing');
    return res.json(doc);
  }
  const options = Object.fromEntries(['revs', 'revs_info', 'conflicts', 'attachments', 'latest']
    .filter((name) => query[name] === 'true').map((name) => [name, true]));
  if (query.open_revs !== undefined) {
    const revisions = query.open_revs === 'all' ? 'all' : JSON.parse(query.open_revs);
    return res.json(await database.pouch.get(id, { ...options, open_revs: revisions }));
  }
  if (query.rev !== undefined) options.rev = query.rev;
  const doc = await database.pouch.get(id, options);
  res.set('ETag', `"${doc._rev}"`);
  return req.fresh ? res.status(304).end() : res.json(doc);
}

async function putDocument(req, res) {
  const id = req.documentId;
  const body = documentIn(req);
  checkForm(body);
  const rev = revisionOf(req, body);
  const doc = { ...body, _id: id, ...(rev !== undefined && { _rev: rev }) };
  const newEdits = req.query.new_edits !== 'false';
  const result = await writeDocument(req.database, req.user, doc, { newEdits }) ?? { ok: true, id, rev };
  sendWritten(req, res, result, body._deleted ? 200 : 201);
}

async function postDocument(req, res) {
  sendWritten(req, res, await writeDocument(req.database, req.user, documentIn(req)), 201);
}

async function deleteDocument(req, res) {
  const { database, user } = req;
  const id = req.documentId;
  const rev = revisionOf(req);
  if (isLocal(id)) {
    if (!await database.local(id)) throw notFound('missing');
  } else {
    await database.pouch.get(id); // 404 if it does not exist or is deleted
    if (rev === undefined) throw conflict();
  }
  sendWritten(req, res, await writeDocument(database, user, { _id: id, _rev: rev, _deleted: true }), 200);
}

// ---- Attachments

const attachmentName = (req) => req.params.name.join('/');

const COMPRESSED = /^(text\/|application\/(javascript|json|xml)\b)/; // CouchDB sends no ranges of these

/** First and last byte of a Range header; null without one, for several ranges, and for an invalid one. Throws 416. */
function byteRange(header, size) {
  const [, first, last] = /^bytes=\s*(\d*)-(\d*)\s*$/.exec(header ?? '') ?? [];
  if (first === undefined || (first === '' && last === '')) return null;
  // CouchDB omits the first byte if the last N are requested and there are no more than N.
  const from = first === '' ? Math.max(1, size - Number(last)) : Number(first);
  const to = first === '' || last === '' ? size - 1 : Math.min(Number(last), size - 1);
  if (from > to) throw new CouchError(416, 'requested_range_not_satisfiable', 'Requested range not satisfiable');
  return from === 0 && last === '' ? null : [from, to];
}

async function getAttachment(req, res) {
  const { database, query } = req;
  const id = req.documentId;
  const doc = await database.pouch.get(id, query.rev === undefined ? {} : { rev: query.rev });
  const name = attachmentName(req);
  if (!Object.hasOwn(doc._attachments || {}, name)) throw notFound('Document is missing attachment');
  const { content_type: type, digest } = doc._attachments[name];
  const bytes = await database.pouch.getAttachment(id, name, { rev: doc._rev });
  const inRanges = !COMPRESSED.test(type);
  const headers = { 'Content-Type': type, 'ETag': `"${digest.replace(/^md5-/, '')}"` };
  for (const [header, value] of Object.entries(headers)) res.setHeader(header, value); // res.set() would add a charset
  res.setHeader('Accept-Ranges', inRanges ? 'bytes' : 'none');
  if (req.fresh) return res.status(304).end();
  const range = byteRange(req.headers.range, bytes.length);
  const part = inRanges && range ? bytes.subarray(range[0], range[1] + 1) : bytes;
  if (part !== bytes) res.status(206).setHeader('Content-Range', `bytes ${range[0]}-${range[1]}/${bytes.length}`);
  res.setHeader('Content-Length', part.length);
  return res.end(part);
}

async function changeAttachments(req, res, status, change) {
  const { database, user } = req;
  const id = req.documentId;
  if (isLocal(id)) throw badRequest('_local documents do not accept attachments.');
  const rev = revisionOf(req);
  const before = await database.pouch.get(id, rev === undefined ? {} : { rev }).catch((error) => {
    if (error.status === 404) return null;
    throw error;
  });
  if (before && rev === undefined) throw conflict();
  if (!before && rev !== undefined) throw conflict();
  const doc = before ?? { _id: id };
  const changed = { ...doc, _attachments: change(doc._attachments ?? {}) };
  sendWritten(req, res, await writeDocument(database, user, changed), status);
}

async function putAttachment(req, res) {
  const data = Buffer.isBuffer(req.body) ? req.body : Buffer.alloc(0);
  const type = req.headers['content-type'] || 'application/octet-stream';
  await changeAttachments(req, res, 201, (attachments) => ({
    ...attachments, [attachmentName(req)]: { content_type: type, data: data.toString('base64') },
  }));
}

async function deleteAttachment(req, res) {
  await changeAttachments(req, res, 200, (attachments) => {
    const { [attachmentName(req)]: removed, ...others } = attachments;
    if (!removed) throw notFound('Document is missing attachment');
    return others;
  });
}

// ---- In bulk

async function bulkDocs(req, res) {
  const { docs, new_edits: newEdits = true } = jsonObject(req.body);
  if (docs === undefined) throw badRequest('POST body must include `docs` parameter.');
  if (!Array.isArray(docs)) throw badRequest('`docs` parameter must be an array.');
  const results = await writeDocuments(req.database, req.user, docs, { newEdits });
  const rows = results.map((result, i) => (result instanceof CouchError ? result.row(docs[i]._id) : result));
  res.status(201).json(newEdits ? rows : rows.filter((row) => row?.error));
}

async function bulkGet(req, res) {
  const { docs } = jsonObject(req.body);
  if (!Array.isArray(docs)) throw badRequest("Missing JSON list of 'docs'.");
  const options = Object.fromEntries(['revs', 'attachments', 'latest']
    .filter((name) => req.query[name] === 'true').map((name) => [name, true]));
  const results = [];
  for (const { id, rev } of docs) {
    try {
      const doc = isLocal(String(id)) ? await req.database.local(id) ?? notFound('missing')
        : await req.database.pouch.get(id, { ...options, ...(rev && { rev }) });
      if (doc instanceof CouchError) throw doc;
      results.push({ id, docs: [{ ok: doc }] });
    } catch (error) {
      if (error.status !== 404) throw error;
      results.push({ id, docs: [{ error: { id, rev: rev ?? 'undefined', error: 'not_found', reason: 'missing' } }] });
    }
  }
  res.json({ results });
}

const NO_ID = '\u0000'; // sorts before all document ids, except some in tests
const LAST_ID = '\u{10ffff}';

/** A key that is not a string, or is empty, cannot be a document id. PouchDB treats it as one. */
const idOrNone = (key) => (typeof key === 'string' && key !== '' ? key : NO_ID);

/** The range of ids for PouchDB: keys that are not strings sort before every id, and the range needs an end. */
function idRange({ startkey, endkey, descending = false }) {
  const [first, last] = descending ? [LAST_ID, NO_ID] : [NO_ID, LAST_ID];
  return {
    startkey: startkey === undefined ? first : idOrNone(startkey),
    endkey: endkey === undefined ? last : idOrNone(endkey),
  };
}

async function allDocuments(database, query) {
  const { keys: given, key, skip = 0, limit = Infinity, update_seq: sequence = false, ...options } = query;
  if (query.reduce) throw queryError('Reduce is invalid for map-only views.');
  if (query.group || query.group_level !== undefined) throw queryError('Invalid use of grouping on a map view.');
  const keys = given && query.descending ? [...given].reverse() : given;
  const page = { skip, ...(limit < Infinity && { limit }) };
  const asked = keys ? { ...options, keys: keys.map(idOrNone), descending: false }
    : { ...options, ...page, ...idRange(query) };
  const found = await database.pouch.allDocs(asked);
  const rows = keys ? keys.map((name, i) => ({ ...found.rows[i], key: name })).slice(skip, skip + limit) : found.rows;
  return {
    total_rows: found.total_rows,
    offset: keys ? null : skip,
    rows: rows.map(({ doc, ...row }) => (query.include_docs ? { ...row, doc } : row)),
    ...(sequence && { update_seq: database.sequence(await database.updateSequence()) }),
  };
}

/** The _local documents, in the format of `_all_docs`. */
async function localDocuments(database, query) {
  const { keys, descending = false, inclusive_end: inclusive = true, skip = 0, limit = Infinity } = query;
  const locals = await database.locals();
  const row = (doc) => ({
    id: doc._id, key: doc._id, value: { rev: doc._rev }, ...(query.include_docs && { doc }),
  });
  if (keys) {
    const byId = new Map(locals.map((doc) => [doc._id, doc]));
    const rows = keys.map((key) => (byId.has(key) ? row(byId.get(key)) : { key, error: 'not_found' }));
    return { total_rows: null, offset: null, rows: rows.slice(skip, skip + limit) };
  }
  const [low, high] = descending ? [query.endkey, query.startkey] : [query.startkey, query.endkey];
  const within = ({ _id: id }) => (low === undefined || id > low || (id === low && (inclusive || !descending)))
    && (high === undefined || id < high || (id === high && (inclusive || descending)));
  const found = locals.filter(within);
  if (descending) found.reverse();
  return { total_rows: null, offset: null, rows: found.slice(skip, skip + limit).map(row) };
}

/** Routes of listings: `path` for GET and POST, and `path/queries`. */
function listing(router, path, answer) {
  router.get(path, async (req, res) => res.json(await answer(req.database, requestParameters(req))));
  router.post(path, jsonBody, async (req, res) => res.json(await answer(req.database, requestParameters(req))));
  router.post(`${path}/queries`, jsonBody, async (req, res) => {
    res.json(await multipleQueries(req, (query) => answer(req.database, query)));
  });
}

/** Routes for bulk requests. */
function bulkRoutes(router) {
  router.post('/_bulk_docs', jsonBody, bulkDocs);
  router.post('/_bulk_get', jsonBody, bulkGet);
  listing(router, '/_all_docs', allDocuments);
  listing(router, '/_local_docs', localDocuments);
  listing(router, '/_design_docs', (database, query) => (
    allDocuments(database, { startkey: '_design/', endkey: '_design0', inclusive_end: false, ...query })));
}

/** Routes of single documents and their attachments. They match any path, so they come last. */
function documentRoutes(router) {
  router.post('/', jsonBody, postDocument);
  for (const prefix of ['_design/', '_local/', '']) {
    const path = `/${prefix}:id`;
    const identify = (req, res, next) => {
      req.documentId = prefix + req.params.id;
      if (req.method === 'GET' && req.documentId.startsWith('_') && prefix === '') throw notFound('missing');
      checkId(req.documentId);
      next();
    };
    router.route(path).all(identify)
      .get(getDocument)
      .put(parseJson, putDocument)
      .delete(deleteDocument);
    router.route(`${path}/*name`).all(identify)
      .get(getAttachment)
      .put(parseBytes, putAttachment)
      .delete(deleteAttachment);
  }
}

module.exports = { bulkRoutes, documentRoutes, jsonBody };
