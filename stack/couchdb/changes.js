'use strict';
// `_changes`: normal, longpoll and continuous.

const { badRequest, notFound } = require('./errors');
const { compile, context } = require('./javascript');
const { rounded, stringify } = require('./numbers');

const LONGEST = 60000; // ms without a row after which a feed without heartbeat ends

function milliseconds(name, value, otherwise) {
  if (value === undefined) return otherwise;
  if (name === 'heartbeat' && value === 'true') return LONGEST;
  if (!/^\d+$/.test(value)) {
    throw badRequest(`Invalid ${name} value. Expecting a positive integer value (in milliseconds).`);
  }
  return Number(value);
}

/** PouchDB's options for the request's filter. */
async function filterOptions(req) {
  const { filter, view, doc_ids: ids } = req.query;
  const body = req.body && typeof req.body === 'object' ? req.body : {};
  switch (filter) {
    case undefined:
      return {};
    case '_selector':
      if (!body.selector) throw badRequest('Selector error: expected a JSON object');
      return { selector: body.selector };
    case '_doc_ids': {
      const listed = body.doc_ids ?? JSON.parse(ids ?? 'null');
      if (!Array.isArray(listed)) throw badRequest('`doc_ids` filter parameter is not a list of doc ids.');
      return { doc_ids: listed };
    }
    case '_design':
      return { filter: (doc) => doc._id.startsWith('_design/') };
    default:
  }
  if (filter !== '_view' && !/^[^/]+\/[^/]+$/.test(filter)) {
    throw badRequest('`filter` must be of the form `designname/filtername`');
  }
  const [designName, name] = (filter === '_view' ? view || '' : filter).split('/');
  const designDocument = await req.database.designDocument(designName);
  const source = filter === '_view' ? designDocument.views?.[name]?.map : designDocument.filters?.[name];
  if (typeof source !== 'string') throw notFound(`missing json key: ${name}`);
  let emitted = false;
  const passes = compile(source, context(designDocument, { emit: () => { emitted = true; } }), `filter ${filter}`);
  const request = { query: { ...req.query }, userCtx: req.user, method: req.method, body };
  return {
    filter: (doc) => {
      emitted = false;
      return Boolean(passes(rounded(doc), request)) || emitted;
    },
  };
}

class Feed {
  /** `options` are PouchDB's; `since` is a number. */
  constructor(database, options, since, limit) {
    this.database = database;
    this.options = options;
    this.since = since;
    this.limit = limit;
    this.writesSeen = 0;
  }

  /** The next rows in CouchDB's format; advances the position. */
  async read() {
    if (this.limit === 0) return [];
    this.writesSeen = this.database.writes;
    const latest = await this.database.updateSequence();
    if (!this.options.descending && latest <= this.since) return [];
    const limit = Number.isFinite(this.limit) ? { limit: this.limit } : {};
    const { results } = await this.database.pouch.changes({ ...this.options, ...limit, since: this.since });
    this.limit -= results.length;
    const last = results.length > 0 ? results.at(-1).seq : this.since;
    this.since = this.limit > 0 ? Math.max(latest, last) : last; // do not read filtered rows again
    return results.map(({ seq, id, changes, deleted, doc }) => ({
      seq: this.database.sequence(seq), id, changes, ...(deleted && { deleted }), ...(doc && { doc }),
    }));
  }

  get lastSequence() {
    return this.database.sequence(this.since);
  }
}

/** Resolves with true at the first write after the feed was last read; with false on a timeout, or if the client or
 * the database is gone. */
function nextWrite({ database, writesSeen }, res, timeout) {
  return new Promise((resolve) => {
    if (database.writes !== writesSeen || res.closed) {
      resolve(!res.closed);
      return;
    }
    let timer = null;
    const done = (written) => {
      clearTimeout(timer);
      database.off('written', onWritten);
      database.off('deleted', onEnd);
      res.off('close', onEnd);
      resolve(written);
    };
    const onWritten = () => done(true);
    const onEnd = () => done(false);
    database.on('written', onWritten);
    database.on('deleted', onEnd);
    res.on('close', onEnd);
    if (timeout !== null) timer = setTimeout(onEnd, timeout);
  });
}

async function answerChanges(req, res) {
  const { database, query } = req;
  const { feed: kind = 'normal' } = query;
  if (!['normal', 'longpoll', 'continuous'].includes(kind)) {
    throw badRequest('Supported `feed` types: normal, continuous, live, longpoll, eventsource');
  }
  const heartbeat = milliseconds('heartbeat', query.heartbeat, null);
  const timeout = heartbeat === null ? Math.min(milliseconds('timeout', query.timeout, LONGEST), LONGEST) : null;
  const limit = query.limit === undefined ? Infinity : Number(query.limit);
  if (!(limit >= 0)) throw badRequest('Invalid value for integer: limit');
  const since = query.since === 'now' ? await database.updateSequence() : database.sequenceNumber(query.since ?? '0');
  const flags = Object.fromEntries(['include_docs', 'conflicts', 'attachments', 'descending']
    .filter((name) => query[name] === 'true').map((name) => [name, true]));
  const options = { ...flags, style: query.style || 'main_only', ...await filterOptions(req) };
  const feed = new Feed(database, options, since, limit);

  res.type('json').set('Cache-Control', 'must-revalidate');
  if (kind === 'continuous') return answerContinuously(feed, res, heartbeat, timeout);
  let rows = await feed.read();
  if (kind === 'longpoll' && rows.length === 0 && limit > 0) {
    res.write('{"results":[\n');
    const pulse = heartbeat && setInterval(() => res.write('\n'), heartbeat);
    const deadline = timeout === null ? null : Date.now() + timeout;
    while (rows.length === 0
        && await nextWrite(feed, res, deadline === null ? null : Math.max(0, deadline - Date.now()))) {
      rows = await feed.read();
    }
    clearInterval(pulse);
  } else {
    res.write('{"results":[\n');
  }
  res.write(rows.map((row) => stringify(row)).join(',\n'));
  const pending = Math.max(0, await database.updateSequence() - feed.since);
  return res.end(`\n],\n"last_seq":${JSON.stringify(feed.lastSequence)},"pending":${pending}}\n`);
}

async function answerContinuously(feed, res, heartbeat, timeout) {
  res.flushHeaders();
  const pulse = heartbeat && setInterval(() => res.write('\n'), heartbeat);
  do {
    for (const row of await feed.read()) res.write(`${stringify(row)}\n`);
    res.write('\n'); // as CouchDB does before it waits
  } while (feed.limit > 0 && await nextWrite(feed, res, timeout));
  clearInterval(pulse);
  res.end(`{"last_seq":${JSON.stringify(feed.lastSequence)},"pending":0}\n`);
}

module.exports = { answerChanges };
