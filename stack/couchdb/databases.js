'use strict';
// The databases of the server, each a PouchDB in LevelDB, and what PouchDB does not store: the list of databases, their
// _security and their _local documents. Those are in another LevelDB, `registry`.

const crypto = require('node:crypto');
const { EventEmitter } = require('node:events');
const fs = require('node:fs/promises');
const path = require('node:path');

const level = require('level');
const PouchDB = require('pouchdb-core')
  .plugin(require('pouchdb-adapter-leveldb'))
  .plugin(require('pouchdb-find'));

const { CouchError, badRequest, notFound } = require('./errors');
const { Views } = require('./views');

const SYSTEM = ['_users', '_replicator', '_global_changes'];
const LEGAL_NAME = /^[a-z][a-z0-9_$()+/-]*$/;
const ADMINS_ONLY = { members: { roles: ['_admin'] }, admins: { roles: ['_admin'] } };
const LAST = '\uffff'; // sorts after every key with the same prefix

class Databases {
  #folder;
  #registry;
  #open = new Map();

  /** Open the databases in `folder`. `_users` always exists. */
  static async open(folder) {
    const databases = new Databases();
    databases.#folder = path.join(folder, 'databases');
    await fs.mkdir(databases.#folder, { recursive: true, mode: 0o700 });
    databases.#registry = await level(path.join(folder, 'registry'), { valueEncoding: 'json' });
    for await (const { value } of databases.#registry.createReadStream({ gte: 'database!', lt: `database!${LAST}` })) {
      databases.#attach(value);
    }
    if (!databases.#open.has('_users')) await databases.create('_users');
    return databases;
  }

  #path(name) {
    return path.join(this.#folder, encodeURIComponent(name));
  }

  #attach(record) {
    const pouch = new PouchDB(this.#path(record.name), { adapter: 'leveldb' });
    const database = new Database(record, pouch, this.#registry);
    this.#open.set(record.name, database);
    return database;
  }

  names() {
    return [...this.#open.keys()].sort();
  }

  get(name) {
    const database = this.#open.get(name);
    if (!database) throw notFound('Database does not exist.');
    return database;
  }

  async create(name) {
    if (!LEGAL_NAME.test(name) && !SYSTEM.includes(name)) {
      throw new CouchError(400, 'illegal_database_name', `Name: '${name}'. Only lowercase characters (a-z), `
        + 'digits (0-9), and any of the characters _, $, (, ), +, -, and / are allowed. Must begin with a letter.');
    }
    if (this.#open.has(name)) {
      throw new CouchError(412, 'file_exists', 'The database could not be created, the file already exists.');
    }
    const record = {
      name,
      instance: crypto.randomBytes(8).toString('hex'),
      created: Math.floor(Date.now() / 1000), // seconds since 1970
      security: ADMINS_ONLY,
    };
    const database = this.#attach(record);
    await database.info(); // waits until its files exist
    await this.#registry.put(`database!${name}`, record, { sync: true });
    return database;
  }

  async delete(name) {
    const database = this.get(name);
    this.#open.delete(name);
    await this.#registry.del(`database!${name}`, { sync: true });
    await database.destroy();
  }

  async close() {
    for (const database of this.#open.values()) await database.close();
    await this.#registry.close();
  }
}

/** One database. Emits `written` after each write and `deleted` when it is gone. */
class Database extends EventEmitter {
  #record;
  #registry;
  #designDocuments = null;

  constructor(record, pouch, registry) {
    super();
    this.setMaxListeners(0); // one listener for each waiting _changes feed
    this.#record = record;
    this.#registry = registry;
    this.pouch = pouch;
    this.writes = 0; // so that a feed notices a write between reading and waiting
    this.views = new Views(this);
  }

  get name() {
    return this.#record.name;
  }

  get security() {
    return this.#record.security;
  }

  async setSecurity(security) {
    const record = { ...this.#record, security };
    await this.#registry.put(`database!${this.name}`, record);
    this.#record = record;
  }

  async info() {
    const info = await this.pouch.info();
    return {
      db_name: this.name,
      doc_count: info.doc_count,
      update_seq: this.sequence(info.update_seq),
      purge_seq: '0-0',
      compact_running: false,
      disk_format_version: 8,
      instance_start_time: String(this.#record.created),
      props: {},
      sizes: { file: 0, external: 0, active: 0 },
      cluster: { q: 1, n: 1, w: 1, r: 1 },
    };
  }

  /** An update sequence for clients: opaque, and specific to this database. */
  sequence(number) {
    return `${number}-${this.#record.instance}`;
  }

  /** The number in a client's `since`. As in CouchDB, it is 0 if the database was deleted and created again. */
  sequenceNumber(since) {
    if (since === '0') return 0;
    const parts = /^(\d+)-([0-9a-zA-Z_-]+)$/.exec(since);
    if (!parts) throw badRequest("Malformed sequence supplied in 'since' parameter.");
    return parts[2] === this.#record.instance ? Number(parts[1]) : 0;
  }

  async updateSequence() {
    return (await this.pouch.info()).update_seq;
  }

  /** All design documents, by name without `_design/`. */
  async designDocuments() {
    if (this.#designDocuments === null) {
      const range = { startkey: '_design/', endkey: '_design0', inclusive_end: false };
      this.#designDocuments = this.pouch.allDocs({ ...range, include_docs: true })
        .then(({ rows }) => new Map(rows.map(({ id, doc }) => [id.slice('_design/'.length), doc])));
    }
    return this.#designDocuments;
  }

  async designDocument(name) {
    const found = (await this.designDocuments()).get(name);
    if (!found) throw notFound('missing');
    return found;
  }

  /** Call this after each write, with the written ids. */
  written(ids) {
    if (ids.some((id) => id.startsWith('_design/'))) this.#designDocuments = null;
    this.writes++;
    this.emit('written');
  }

  #localKey(id) {
    return `local!${this.#record.instance}!${id}`;
  }

  /** The _local document with this id ("_local/..."), or null. */
  async local(id) {
    return this.#registry.get(this.#localKey(id)).catch((error) => {
      if (error.notFound) return null;
      throw error;
    });
  }

  /** Overwrite a _local document. As in CouchDB, the new revision only increments the given one. */
  async putLocal(doc) {
    const revision = /^0-(\d+)$/.exec(doc._rev ?? '0-0');
    if (!revision) throw badRequest('Invalid rev format');
    if (doc._deleted) {
      await this.#registry.del(this.#localKey(doc._id));
      return '0-0';
    }
    const _rev = `0-${Number(revision[1]) + 1}`;
    await this.#registry.put(this.#localKey(doc._id), { ...doc, _rev });
    return _rev;
  }

  /** All _local documents, ordered by id. */
  async locals() {
    const found = [];
    const range = { gte: this.#localKey(''), lt: this.#localKey(LAST) };
    for await (const { value } of this.#registry.createReadStream(range)) found.push(value);
    return found;
  }

  async destroy() {
    await this.#registry.clear({ gte: this.#localKey(''), lt: this.#localKey(LAST) });
    await this.pouch.destroy();
    this.emit('deleted');
  }

  async close() {
    await this.pouch.close();
  }
}

module.exports = { Databases };
