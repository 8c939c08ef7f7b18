'use strict';
// Every write of documents goes through writeDocuments(): checks, hashed passwords, _local documents, attachment stubs,
// validate_doc_update, and then PouchDB.

const crypto = require('node:crypto');

const { isAdmin, withHashedPassword } = require('./auth');
const { CouchError, asCouchError, badRequest, conflict, forbidden } = require('./errors');
const { compile, context } = require('./javascript');
const { checkIntegers, rounded } = require('./numbers');
const { compileViews } = require('./views');

const LARGEST = 8000000; // bytes of JSON of one document: CouchDB's max_document_size
const SPECIAL = ['_id', '_rev', '_deleted', '_attachments', '_revisions', '_revs_info', '_conflicts',
  '_deleted_conflicts', '_local_seq'];
const REVISION = /^\d+-[0-9a-zA-Z]+$/;

const isLocal = (id) => id.startsWith('_local/');
const isDesign = (id) => id.startsWith('_design/');

function checkId(id) {
  const illegal = (reason) => new CouchError(400, 'illegal_docid', reason);
  if (typeof id !== 'string') throw illegal('Document id must be a string');
  if (id === '') throw illegal('Document id must not be empty');
  if (id === '_design/' || id === '_local/') throw illegal(`Illegal document id \`${id}\``);
  if (id.startsWith('_') && !isLocal(id) && !isDesign(id)) {
    throw illegal('Only reserved document ids may start with underscore.');
  }
}

/** Throws 400 or 413 for a value that cannot be a document; this fails the whole request. */
function checkForm(doc) {
  if (doc === null || typeof doc !== 'object' || Array.isArray(doc)) throw badRequest('Document must be a JSON object');
  if (doc._id !== undefined) checkId(doc._id);
  checkIntegers(doc);
  if (doc._rev !== undefined && !(typeof doc._rev === 'string' && REVISION.test(doc._rev))) {
    throw badRequest('Invalid rev format');
  }
  const body = {};
  for (const [name, value] of Object.entries(doc)) {
    if (name === '_attachments') checkAttachments(value);
    if (!name.startsWith('_')) body[name] = value;
    else if (!SPECIAL.includes(name)) {
      throw new CouchError(400, 'doc_validation', `Bad special document member: ${name}`);
    }
  }
  if (Buffer.byteLength(JSON.stringify(body)) > LARGEST) {
    throw new CouchError(413, 'document_too_large', doc._id ?? '');
  }
}

const isBase64 = (data) => typeof data === 'string' && /^[A-Za-z0-9+/\s]*={0,2}\s*$/.test(data);

function checkAttachments(attachments) {
  for (const [name, attachment] of Object.entries(attachments)) {
    if (name.startsWith('_')) {
      throw badRequest(`Attachment name '${name}' starts with prohibited character '_'`);
    }
    if (!attachment?.stub && !attachment?.follows && !isBase64(attachment?.data)) {
      throw badRequest(`Invalid attachment data for ${name}`);
    }
  }
}

/** The document with attachment stubs filled in from the revision that it replaces; throws 412 if that has none, and 500
 * for an attachment whose content is not in the request. */
async function withAttachments(database, { _attachments: given = {}, ...doc }) {
  // Only a multipart request can contain it; in CouchDB, the process that stores the document fails.
  if (Object.values(given).some(({ follows }) => follows)) throw new CouchError(500, 'unknown_error', 'function_clause');
  const attachments = {};
  for (const [name, attachment] of Object.entries(given)) {
    attachments[name] = attachment.stub ? attachment : { content_type: 'application/octet-stream', ...attachment };
  }
  const stubs = Object.entries(attachments).filter(([, attachment]) => attachment.stub);
  const options = doc._rev ? { rev: doc._rev } : {};
  const before = stubs.length > 0 ? await database.pouch.get(doc._id, options).catch(() => ({})) : {};
  for (const [name] of stubs) {
    const known = before._attachments?.[name];
    if (!known) {
      throw new CouchError(412, 'missing_stub', `Invalid attachment stub in ${doc._id} for ${name}`);
    }
    attachments[name] = known;
  }
  return Object.keys(attachments).length > 0 ? { ...doc, _attachments: attachments } : doc;
}

/** Throws the error of a validate_doc_update function of the database. */
async function validate(database, user, doc) {
  if (isDesign(doc._id)) return;
  const designDocuments = [...(await database.designDocuments()).values()].filter((it) => it.validate_doc_update);
  if (designDocuments.length === 0) return;
  const before = await database.pouch.get(doc._id).catch(() => null);
  for (const designDocument of designDocuments) {
    const check = compile(designDocument.validate_doc_update, context(designDocument), 'validate_doc_update function');
    try {
      check(rounded(doc), rounded(before), { ...user, db: database.name }, database.security);
    } catch (error) {
      if (error?.forbidden) throw forbidden(error.forbidden);
      if (error?.unauthorized) throw new CouchError(401, 'unauthorized', error.unauthorized);
      throw new CouchError(500, 'unknown_error', String(error?.message ?? error));
    }
  }
}

/** The document to store. Throws errors that refuse only this document. */
async function prepared(database, user, doc) {
  if (isDesign(doc._id)) {
    if (!isAdmin(user, database)) throw forbidden('You are not a db or server admin.');
    if (!doc._deleted && (doc.language ?? 'javascript') === 'javascript') compileViews(doc);
  }
  await validate(database, user, doc);
  return database.name === '_users' && !isDesign(doc._id) ? withHashedPassword(doc) : doc;
}

/** Write each document. Returns one result per document, in order: {ok, id, rev}, or the CouchError that refused it.
 *
 * Throws errors that fail the whole request: a value that is not a document, a document that is too large, a missing
 * attachment stub (as in CouchDB, the other documents may have been written then).
 */
async function writeDocuments(database, user, docs, { newEdits = true } = {}) {
  docs.forEach(checkForm);
  const results = new Array(docs.length);
  const ready = []; // [position, document] for PouchDB
  let failure = null;
  for (const [position, given] of docs.entries()) {
    const doc = { ...given, _id: given._id ?? crypto.randomUUID().replaceAll('-', '') };
    try {
      if (isLocal(doc._id)) {
        results[position] = { ok: true, id: doc._id, rev: await database.putLocal(doc) };
      } else {
        ready.push([position, await withAttachments(database, await prepared(database, user, doc))]);
      }
    } catch (error) {
      const refusal = asCouchError(error);
      if (refusal.error === 'missing_stub' || refusal.reason === 'function_clause') failure = refusal;
      results[position] = refusal;
    }
  }
  if (ready.length > 0) {
    const written = await database.pouch.bulkDocs({ docs: ready.map(([, doc]) => doc) }, { new_edits: newEdits });
    database.written(ready.map(([, doc]) => doc._id));
    if (newEdits) {
      written.forEach((row, i) => {
        results[ready[i][0]] = row.ok ? { ok: true, id: row.id, rev: row.rev } : refused(row);
      });
    }
  }
  if (failure) throw failure;
  return results;
}

/** Convert PouchDB's error row. In CouchDB, deleting a document that never existed is a conflict. */
function refused(row) {
  return row.status === 404 || row.status === 409 ? conflict() : asCouchError(row);
}

/** Write one document; throws the error that refuses it. */
async function writeDocument(database, user, doc, options) {
  const [result] = await writeDocuments(database, user, [doc], options);
  if (result instanceof CouchError) throw result;
  return result;
}

module.exports = { checkForm, checkId, isLocal, writeDocument, writeDocuments };
