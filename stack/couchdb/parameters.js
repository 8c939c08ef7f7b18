'use strict';
// Query parameters of views, _all_docs and _local_docs, from the URL and from a JSON body.

const { CouchError, badRequest, queryError } = require('./errors');

const JSON_VALUES = ['key', 'keys', 'startkey', 'endkey'];
const FLAGS = ['conflicts', 'attachments', 'att_encoding_info', 'descending', 'group', 'include_docs', 'inclusive_end',
  'reduce', 'sorted', 'stable', 'update_seq'];
const NUMBERS = ['group_level', 'limit', 'skip'];
const TEXTS = ['startkey_docid', 'endkey_docid', 'stale', 'update'];
const ALIASES = {
  start_key: 'startkey', end_key: 'endkey', start_key_doc_id: 'startkey_docid', end_key_doc_id: 'endkey_docid',
};

function flag(name, value) {
  if (value === true || value === 'true') return true;
  if (value === false || value === 'false') return false;
  throw queryError(`Invalid boolean parameter: ${JSON.stringify(value)}`);
}

function number(name, value) {
  const parsed = typeof value === 'string' && /^-?\d+$/.test(value) ? Number(value) : value;
  if (!Number.isInteger(parsed)) throw queryError(`Invalid value for integer: ${JSON.stringify(value)}`);
  if (parsed < 0) throw queryError(`Invalid value for positive integer: ${JSON.stringify(value)}`);
  return parsed;
}

function json(value) {
  try {
    return JSON.parse(value);
  } catch {
    throw badRequest('invalid UTF-8 JSON');
  }
}

/** The parameters in `source` that CouchDB knows, by their main name and validated; others are ignored. */
function queryParameters(source, { fromUrl }) {
  const found = {};
  for (const [given, value] of Object.entries(source)) {
    const name = ALIASES[given] || given;
    if (JSON_VALUES.includes(name)) found[name] = fromUrl ? json(value) : value;
    else if (FLAGS.includes(name)) found[name] = flag(name, value);
    else if (NUMBERS.includes(name)) found[name] = number(name, value);
    else if (TEXTS.includes(name)) found[name] = String(value);
  }
  if (found.keys !== undefined && !Array.isArray(found.keys)) throw badRequest('`keys` parameter must be an array.');
  if ('key' in found) found.startkey = found.endkey = found.key;
  return found;
}

/** The parameters of a request: those of the URL, overridden by those of a JSON body. */
function requestParameters(req) {
  const url = queryParameters(req.query, { fromUrl: true });
  return req.method === 'POST' ? { ...url, ...queryParameters(jsonObject(req.body), { fromUrl: false }) } : url;
}

/** The body, which must be a JSON object. */
function jsonObject(body) {
  if (body === undefined) throw badRequest('invalid UTF-8 JSON');
  if (body === null || typeof body !== 'object' || Array.isArray(body)) {
    throw badRequest('Request body must be a JSON object');
  }
  return body;
}

/** The response to `POST .../queries`: the result of `answer(parameters)` for each query in the body. */
async function multipleQueries(req, answer) {
  const { queries } = jsonObject(req.body);
  if (!Array.isArray(queries)) throw new CouchError(400, 'bad_request', '`queries` parameter must be an array.');
  const url = queryParameters(req.query, { fromUrl: true });
  const results = [];
  for (const query of queries) {
    results.push(await answer({ ...url, ...queryParameters(jsonObject(query), { fromUrl: false }) }));
  }
  return { results };
}

module.exports = { jsonObject, multipleQueries, requestParameters };
