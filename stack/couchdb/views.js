'use strict';
// The views of a database. Indexes are in memory: each is built at its first query, and then follows the changes.
// This suits the tens of thousands of documents of a demo; CouchDB stores its indexes on disk.

const { compareIds, compareKeys } = require('./collation');
const { CouchError, notFound, queryError } = require('./errors');
const { compile, context } = require('./javascript');
const { rounded } = require('./numbers');
const { reducer } = require('./reductions');
const { SortedRows } = require('./sorted-rows');

const BATCH = 1000; // documents read at once while an index is updated
const LONGEST_TURN = 20; // ms of work on an index until other requests get a turn

/** Compile all functions of a design document's views; throws compilation_error for an invalid one. */
function compileViews(designDocument) {
  let rows = []; // what emit() collects: [key, value]
  const plain = (value) => (value === undefined ? null : JSON.parse(JSON.stringify(value) ?? 'null'));
  const globals = context(designDocument, { emit: (key, value) => rows.push([plain(key), plain(value)]) });
  return Object.entries(designDocument.views || {}).filter(([name]) => name !== 'lib').map(([name, view]) => {
    if (typeof view?.map !== 'string') {
      throw new CouchError(400, 'invalid_design_doc', `View ${name} has no map function.`);
    }
    const map = compile(view.map, globals, `map function in the '${name}' view`);
    const reduce = view.reduce ? reducer(view.reduce, designDocument, `reduce function in the '${name}' view`) : null;
    return {
      name,
      reduce,
      map(doc) {
        rows = [];
        try {
          map(rounded(doc));
        } catch {
          rows = []; // a document for which the map function throws is skipped, as in CouchDB
        }
        return rows;
      },
    };
  });
}

/** The index of one design document: the rows of all its views, up to one update sequence. */
class Index {
  #sequence = 0;
  #updating = Promise.resolve();
  #updates = 0;
  #rowsOf = new Map(); // document id -> [[view, row], ...]

  constructor(designDocument) {
    this.views = new Map(compileViews(designDocument).map((view) => (
      [view.name, { ...view, rows: new SortedRows(view.reduce) }])));
  }

  /** Update the index. Only one update runs at a time. */
  update(pouch) {
    this.#updates += 1;
    this.#updating = this.#updating.catch(() => {}).then(() => this.#follow(pouch)).finally(() => { this.#updates -= 1; });
    return this.#updating;
  }

  /** The number of the database's changes that the index lacks. */
  async behind(pouch) {
    return Math.max(0, (await pouch.info()).update_seq - this.#sequence);
  }

  /** The number of the database's changes that the index has. */
  get sequence() {
    return this.#sequence;
  }

  get isUpdating() {
    return this.#updates > 0;
  }

  async #follow(pouch) {
    for (;;) {
      const { results } = await pouch.changes({ since: this.#sequence, include_docs: true, limit: BATCH });
      let end = Date.now() + LONGEST_TURN;
      for (const change of results) {
        this.#apply(change);
        this.#sequence = change.seq;
        if (Date.now() < end) continue;
        await new Promise(setImmediate);
        end = Date.now() + LONGEST_TURN;
      }
      if (results.length === BATCH) continue;
      // PouchDB omits a document that is written while it reads: the newest change comes with the next read.
      const { update_seq: written } = await pouch.info();
      if (this.#sequence >= written) return;
    }
  }

  #apply({ id, doc, deleted }) {
    if (id.startsWith('_design/')) return;
    for (const [view, row] of this.#rowsOf.get(id) || []) view.rows.remove(row);
    this.#rowsOf.delete(id);
    if (deleted) return;
    const emitted = [];
    for (const view of this.views.values()) {
      view.map(doc).forEach(([key, value], turn) => emitted.push([view, { key, id, value, turn }]));
    }
    for (const [view, row] of emitted) view.rows.insert(row);
    if (emitted.length > 0) this.#rowsOf.set(id, emitted);
  }
}

/** The positions [from, to) of the rows between the query's startkey and endkey. */
function range(rows, query) {
  const { descending = false, inclusive_end: inclusive = true } = query;
  const [first, last] = descending ? ['endkey', 'startkey'] : ['startkey', 'endkey'];
  const includes = { startkey: true, endkey: inclusive };
  if ('startkey' in query && 'endkey' in query && compareKeys(query[first], query[last]) > 0) {
    throw queryError('No rows can match your key range, reverse your start_key and end_key or set '
      + `descending=${!descending}`);
  }
  const order = (row, end) => compareKeys(row.key, query[end])
    || (`${end}_docid` in query ? compareIds(row.id, query[`${end}_docid`]) : 0);
  const from = first in query
    ? rows.position((row) => order(row, first) > 0 || (includes[first] && order(row, first) === 0)) : 0;
  const to = last in query
    ? rows.position((row) => order(row, last) > 0 || (!includes[last] && order(row, last) === 0)) : rows.length;
  return [from, Math.max(from, to)];
}

function page(rows, { descending = false, skip = 0, limit = Infinity }) {
  const ordered = descending ? rows.reverse() : rows;
  return ordered.slice(skip, skip + limit);
}

function mapRows(rows, query) {
  const shown = ({ id, key, value }) => ({ id, key, value });
  if (query.keys) {
    const found = query.keys.flatMap((key) => rows.slice(...range(rows, { ...query, startkey: key, endkey: key })));
    return { total_rows: rows.length, offset: 0, rows: page(found, query).map(shown) };
  }
  let [from, to] = range(rows, query);
  const { skip = 0, limit = Infinity } = query;
  const before = query.descending ? rows.length - to : from;
  const size = to - from;
  if (query.descending) {
    [from, to] = [Math.max(from, to - skip - limit), Math.max(from, to - skip)];
  } else {
    [from, to] = [Math.min(to, from + skip), Math.min(to, from + skip + limit)];
  }
  const found = rows.slice(from, to);
  if (query.descending) found.reverse();
  return { total_rows: rows.length, offset: before + Math.min(skip, size), rows: found.map(shown) };
}

function reducedRows(rows, query) {
  const groupLevel = query.group_level ?? (query.group ? Infinity : 0);
  if (query.keys) {
    if (query.keys.length > 1 && groupLevel !== Infinity) {
      throw queryError('Multi-key fetches for reduce views must use `group=true`');
    }
    const groups = query.keys.flatMap((key) => (
      rows.groups(...range(rows, { ...query, startkey: key, endkey: key }), groupLevel)));
    return { rows: page(groups, query) };
  }
  return { rows: page(rows.groups(...range(rows, query), groupLevel), query) };
}

class Views {
  #database;
  #indexes = new Map(); // design document's name -> {source, index}

  constructor(database) {
    this.#database = database;
  }

  /** The index of a design document. It is kept while the views are unchanged. */
  #index(designDocument) {
    const source = JSON.stringify([designDocument.views, designDocument.lib]);
    const known = this.#indexes.get(designDocument._id);
    if (known?.source === source) return known.index;
    const index = new Index(designDocument);
    this.#indexes.set(designDocument._id, { source, index });
    return index;
  }

  /** The response to one query of a view. Throws 404 if the view does not exist. */
  async query(designName, viewName, query) {
    const designDocument = await this.#database.designDocument(designName);
    if (!Object.hasOwn(designDocument.views || {}, viewName)) throw notFound('missing_named_view');
    const index = this.#index(designDocument);
    const view = index.views.get(viewName);
    const reducing = view.reduce !== null && query.reduce !== false;
    if (!reducing && (query.group || query.group_level !== undefined)) {
      throw queryError('Invalid use of grouping on a map view.');
    }
    if (query.reduce && view.reduce === null) throw queryError('Reduce is invalid for map-only views.');
    if (reducing && query.include_docs) throw queryError('`include_docs` is invalid for reduce');
    const stale = query.update === 'false' || query.stale === 'ok';
    const lazy = query.update === 'lazy' || query.stale === 'update_after';
    if (!stale && !lazy) await index.update(this.#database.pouch);
    const answer = reducing ? reducedRows(view.rows, query) : mapRows(view.rows, query);
    if (lazy) index.update(this.#database.pouch).catch((error) => console.error('index update failed', error));
    if (query.include_docs) await this.#addDocuments(answer.rows, query);
    if (query.update_seq) answer.update_seq = this.#database.sequence(await this.#database.updateSequence());
    return answer;
  }

  async #addDocuments(rows, { conflicts = false, attachments = false }) {
    for (const row of rows) {
      const linked = typeof row.value?._id === 'string' ? row.value._id : row.id;
      const rev = linked === row.id ? undefined : row.value._rev;
      const options = { conflicts, attachments, ...(rev && { rev }) };
      row.doc = await this.#database.pouch.get(linked, options).catch((error) => {
        if (error.status === 404) return null;
        throw error;
      });
    }
  }

  /** The response to `GET /db/_design/name/_info`. */
  async info(designName) {
    const designDocument = await this.#database.designDocument(designName);
    const index = this.#index(designDocument);
    const behind = await index.behind(this.#database.pouch);
    return {
      name: designName,
      view_index: {
        language: designDocument.language || 'javascript',
        updater_running: index.isUpdating,
        update_seq: index.sequence,
        updates_pending: { minimum: behind, preferred: behind, total: behind },
        compact_running: false,
        waiting_clients: 0,
        sizes: { file: 0, external: 0, active: 0 },
      },
    };
  }
}

module.exports = { Views, compileViews };
