'use strict';
// Errors in CouchDB's format: a status, a short error name, and a reason.

class CouchError extends Error {
  constructor(status, error, reason) {
    super(reason);
    this.status = status;
    this.error = error;
    this.reason = reason;
  }

  /** The row for this error in a bulk response. */
  row(id) {
    return { id, error: this.error, reason: this.reason };
  }
}

const badRequest = (reason) => new CouchError(400, 'bad_request', reason);
const queryError = (reason) => new CouchError(400, 'query_parse_error', reason);
const unauthorized = (reason) => new CouchError(401, 'unauthorized', reason);
const forbidden = (reason) => new CouchError(403, 'forbidden', reason);
const notFound = (reason) => new CouchError(404, 'not_found', reason);
const conflict = () => new CouchError(409, 'conflict', 'Document update conflict.');

/** Any error (our own, PouchDB's or the body parser's) as a CouchError. */
function asCouchError(error) {
  if (error instanceof CouchError) return error;
  if (error.type === 'entity.parse.failed') return badRequest('invalid UTF-8 JSON');
  if (error.type === 'entity.too.large') return new CouchError(413, 'too_large', 'the request entity is too large');
  if (error.status === 409) return conflict();
  const word = typeof error.error === 'string' ? error.error : error.name || 'unknown_error';
  return new CouchError(error.status || 500, word, error.reason || error.message || String(error));
}

module.exports = {
  CouchError, asCouchError, badRequest, conflict, forbidden, notFound, queryError, unauthorized,
};
